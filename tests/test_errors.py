"""How a command ends: run_main."""

import subprocess
import sys

import pytest

from conftest import ROOT

START = "from retrieval.errors import UserError, run_main\n"


def run(code: str, shell_end: str = "", **environment: str) -> subprocess.CompletedProcess:
    command = f"set -o pipefail; {sys.executable} -c '{START}{code}' {shell_end}"
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", **environment})


def test_a_reader_that_has_gone_ends_it_without_a_word():
    result = run("run_main(lambda: print(\"x\\n\" * 100_000))", "| head -1")
    assert result.stdout == "x\n" and result.stderr == "" and result.returncode == 141


def test_a_terminal_without_unicode_gets_escapes():
    result = run("run_main(lambda: print(chr(233)))", PYTHONIOENCODING="ascii")
    assert (result.stdout, result.stderr, result.returncode) == ("\\xe9\n", "", 0)


@pytest.mark.parametrize(
    ("raised", "message", "code"),
    [
        ("UserError(\"no\")", "error: no\n", 2),
        ("KeyboardInterrupt", "interrupted\n", 130),
        ("OSError(36, \"File name too long\", \"n\" * 999)", f"error: {'n' * 80}...: the name is too long\n", 2),
    ],
)
def test_what_the_user_did_is_one_line(raised, message, code):
    result = run(f"def main():\n    raise {raised}\nrun_main(main)")
    assert (result.stderr, result.returncode) == (message, code)


def test_a_fault_of_the_program_shows_where():
    result = run("def main():\n    raise OSError(5, \"I/O error\")\nrun_main(main)")
    assert "Traceback" in result.stderr and result.returncode == 1
