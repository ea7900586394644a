"""How a command ends: run_main."""

import subprocess
import sys

import pytest

from tests.conftest import PATIENCE, ROOT

START = """from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.command import run_main
"""


def run(code: str, shell_end: str = "", **environment: str) -> subprocess.CompletedProcess:
    command = f"set -o pipefail; {sys.executable} -c '{START}{code}' {shell_end}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


def test_a_reader_that_has_gone_ends_it_without_a_word():
    result = run('run_main(lambda: print("x\\n" * 100_000))', "| head -1")
    assert result.stdout == "x\n" and result.stderr == "" and result.returncode == 141


def test_a_terminal_without_unicode_gets_escapes():
    result = run("run_main(lambda: print(chr(233)))", PYTHONIOENCODING="ascii")
    assert (result.stdout, result.stderr, result.returncode) == ("\\xe9\n", "", 0)


@pytest.mark.parametrize(
    ("raised", "message", "code"),
    [
        ('UserError("no")', "error: no\n", 2),
        ("KeyboardInterrupt", "interrupted\n", 130),
        (
            'PermissionError(13, "Permission denied", "file")',
            "error: [Errno 13] Permission denied: 'file'\n",
            2,
        ),
        (
            'OSError(36, "File name too long", "n" * 999)',
            f"error: {'n' * 80}...: the name is too long\n",
            2,
        ),
    ],
)
def test_what_the_user_did_is_one_line(raised, message, code):
    result = run(f"def main():\n    raise {raised}\nrun_main(main)")
    assert (result.stderr, result.returncode) == (message, code)


def test_a_wrong_option_is_one_line():
    parse = 'OneLineParser(prog="x").parse_args(["a\\nb\\x1b"])'
    result = run(f"run_main(lambda: {parse})")
    said = "error: unrecognized arguments: a\\nb\\x1b (see x --help)\n"
    assert (result.stderr, result.returncode) == (said, 2)


def test_a_fault_of_the_program_shows_where():
    result = run('def main():\n    raise RuntimeError("broken")\nrun_main(main)')
    assert "Traceback" in result.stderr and result.returncode == 1


# --- output that cannot be written ---

# Fails at the flush at the end | within print, since it is more than a buffer | while a library
# that swallows the error prints.
PRINTS = [
    "run_main(lambda: print(1))",
    'run_main(lambda: print("x" * 100_000))',
    'run_main(lambda: OneLineParser().parse_args(["--help"]))',
]


@pytest.mark.parametrize("code", PRINTS)
def test_output_to_a_full_disk_is_one_line(code):
    result = run(code, "> /dev/full")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: standard output") and "No space left" in line


def test_an_error_is_told_before_that_of_the_output():
    result = run(
        'def main():\n    print(1)\n    raise UserError("no")\nrun_main(main)', "> /dev/full"
    )
    assert (result.stderr, result.returncode) == ("error: no\n", 2)


@pytest.mark.parametrize("code", PRINTS)
def test_closed_output_is_one_line(code):
    result = run(code, ">&-")
    assert (
        result.returncode == 2
        and result.stderr.startswith("error: standard output is closed")
        and result.stderr.count("\n") == 1
    )


def test_closed_output_ends_it_before_anything_is_done(tmp_path):
    run(f'run_main(lambda: open("{tmp_path / "written"}", "w").close())', ">&-")
    assert not (tmp_path / "written").exists()


def test_closed_stdin_and_stderr_do_not_matter(tmp_path):
    """Nor does a file that is opened then get their numbers."""
    opened = f'open("{tmp_path / "file"}", "w")'
    code = f'def main():\n    print({opened}.fileno() > 2, sys.stdin.read() == "")\nrun_main(main)'
    result = run(f"import sys\n{code}", "<&- 2>&-")
    assert (result.stdout, result.returncode) == ("True True\n", 0)


def test_errors_end_with_their_code_where_stderr_cannot_be_written():
    assert (
        run('def main():\n    raise UserError("no")\nrun_main(main)', "2> /dev/full").returncode
        == 2
    )


def test_names_speak_no_commands_to_the_terminal():
    result = run('def main():\n    raise UserError("a\\nb\\x1b[31m")\nrun_main(main)')
    assert result.stderr == "error: a b\\x1b[31m\n"


COMMANDS = [
    *(
        ["train.py"],
        ["evaluate.py"],
        ["-m", "retrieval.search"],
        ["-m", "retrieval.app"],
        ["-m", "retrieval.export"],
        ["-m", "retrieval.sharing"],
    ),
    *(
        [f"data_prep/{path.name}"]
        for path in sorted((ROOT / "data_prep").glob("*.py"))
        if "run_main(main)" in path.read_text()
    ),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_every_command_tells_of_lost_output(command):
    ended = subprocess.run(
        ["bash", "-c", f"{sys.executable} {' '.join(command)} --help > /dev/full"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        ended.returncode == 2
        and ended.stderr.startswith("error: standard output")
        and ended.stderr.count("\n") == 1
    )
