"""Progress of long work: what a terminal, a log file, --quiet and a second process see of it."""

import fcntl
import importlib.util
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap

import pytest

from data_prep import build_clotho, make_sample_corpus
from retrieval.base import progress
from retrieval.evaluation import zero_shot
from retrieval.training import pretraining
from tests.conftest import PATIENCE, ROOT

WORK = """
    import sys
    import tqdm.std
    from retrieval.base import progress

    seconds = 0.0
    tqdm.std.time = lambda: seconds  # a clock that only the work moves on
    progress.SECONDS_UNSEEN, progress.SECONDS_BETWEEN_LINES = 0.2, 0.5
    {before}
    with progress.bar(total={total}, desc="embedding", unit="clip", initial=1000) as bar:
        for _ in range({steps}):
            seconds += 0.05
            bar.set_postfix(loss="0.5", refresh=False)
            bar.update(10)
"""


@pytest.fixture
def start():
    """Runs the work of `WORK` with the stderr that is given; keyword arguments fill it in."""

    def start(
        stderr,
        environment: dict[str, str] | None = None,
        before: str = "",
        total: int | None = 1300,
        steps: int = 30,
    ) -> None:
        code = textwrap.dedent(WORK).format(before=before, total=total, steps=steps)
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("RANK", "LOCAL_RANK", "TQDM_DISABLE")
        } | (environment or {})
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stderr=stderr,
            check=True,
            timeout=PATIENCE,
        )

    return start


def seen_in_file(start, tmp_path, **arguments) -> str:
    with open(tmp_path / "log", "w+", newline="") as file:
        start(file, **arguments)
        file.seek(0)
        return file.read()


def seen_on_terminal(start, num_columns: int = 100, **arguments) -> str:
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 24, num_columns, 0, 0))
    try:
        start(writer, **arguments)  # what it writes fits into the terminal's buffer
        os.set_blocking(reader, False)
        try:
            return os.read(reader, 1 << 20).decode()
        except BlockingIOError:
            return ""
    finally:
        os.close(reader)
        os.close(writer)


LINE = re.compile(r"embedding: 1,\d\d0/1,300 clips, \d+\.\d clips/s, \d s left, loss=0\.5")


def test_a_log_file_gets_few_whole_lines(start, tmp_path):
    text = seen_in_file(start, tmp_path)
    assert "\r" not in text and text.endswith("\n")
    *lines, last = text.splitlines()
    assert 1 <= len(lines) <= 6 and all(map(LINE.fullmatch, lines)), text
    assert re.fullmatch(r"embedding: 1,300 clips in \d s, \d+\.\d clips/s, loss=0\.5", last), text


def test_without_a_total_there_is_no_time_left(start, tmp_path):
    first, *_ = seen_in_file(start, tmp_path, total=None, steps=15).splitlines()
    assert re.fullmatch(r"embedding: 1,\d\d0 clips, \d+\.\d clips/s, loss=0\.5", first)


def test_work_that_ends_early_says_how_far_it_came(start, tmp_path):
    assert "embedding: 1,050/1,300 clips in 0 s, " in seen_in_file(start, tmp_path, steps=5)


def test_a_terminal_gets_a_bar_with_rate_and_time_left(start):
    text = seen_on_terminal(start)
    assert re.search(
        r"\rembedding:  9\d% \|.*\| 1\d\d0/1300 clips \[00:0\d<00:0\d, ?\d+\.\d\d clips/s,"
        r" loss=0\.5\]",
        text,
    ), text


@pytest.mark.parametrize(
    "arguments",
    [
        {"before": "progress.set_quiet(True)"},
        {"before": "progress.SECONDS_UNSEEN = 60"},
        {"environment": {"TQDM_DISABLE": "1"}},
    ],
    ids=["quiet", "short work", "tqdm's variable"],
)
def test_nothing_is_shown(start, tmp_path, arguments):
    assert seen_in_file(start, tmp_path, steps=5, **arguments) == ""


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "1", "LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"}],
    ids=["rank", "local rank"],
)
def test_of_several_processes_the_first_alone_shows_it(start, tmp_path, environment):
    assert seen_in_file(start, tmp_path, steps=5, environment=environment) == ""


def test_nothing_is_shown_on_a_terminal(start):
    assert seen_on_terminal(start, steps=5, before="progress.set_quiet(True)") == ""


def test_a_terminal_without_a_width_gets_lines(start):
    assert seen_on_terminal(start, steps=5, num_columns=0).startswith(
        "embedding: 1,050/1,300 clips in 0 s, "
    )


def test_durations():
    assert [progress.duration(seconds) for seconds in (0.4, 59.6, 95, 3599.7, 7530)] == [
        "0 s",
        "1 min 0 s",
        "1 min 35 s",
        "1 h 0 min",
        "2 h 5 min",
    ]


def script(name: str):
    """`main` of train.py or evaluate.py."""
    specification = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("options", [[], ["--quiet"]], ids=["shown", "quiet"])
def test_the_commands_show_it_unless_they_are_quiet(tiny, tmp_path, monkeypatch, capsys, options):
    monkeypatch.setattr(progress, "SECONDS_UNSEEN", 0.0)
    monkeypatch.setattr(progress, "_quiet", False)
    run, model, weights = (str(tmp_path / name) for name in ("run", "run/best", "weights"))
    sizes = ["--embed-dim", "32", "--depth", "1", "--num-heads", "2", "--steps", "2"]
    (tmp_path / "labels.txt").write_text("low\nhigh\n")
    train, score = script("train"), script("evaluate")
    start = [
        "--config",
        f"{tiny}/tiny.yaml",
        f"train.output={run}",
        "train.max_steps=1",
        "evaluation.num_pictures=0",
    ]
    commands = {
        "epoch 1/2": lambda: train([*start, *options]),
        "scoring evaluation": lambda: score(["--checkpoint", model, *options]),
        "scoring validation": lambda: zero_shot.main(
            [
                "--checkpoint",
                model,
                "--split",
                "validation",
                "--labels",
                f"{tmp_path}/labels.txt",
                "--output",
                f"{tmp_path}/labels.csv",
                *options,
            ]
        ),
        "text encoder": lambda: pretraining.main(
            [
                "--cache",
                f"{tiny}/cache",
                "--text-encoder",
                f"{tiny}/text_encoder",
                "--output",
                weights,
                *sizes,
                *options,
            ]
        ),
    }
    check(commands, capsys, options)


def test_steps_count_up_to_max_steps(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_UNSEEN", 0.0)
    settings = [f"train.output={tmp_path}/run", "train.max_steps=2", "evaluation.num_pictures=0"]
    assert script("train")(["--config", f"{tiny}/tiny.yaml", *settings]) == 0
    assert "epoch 1/2: 2 steps in" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--quiet"]], ids=["shown", "quiet"])
def test_so_do_those_of_data_prep(tmp_path, monkeypatch, capsys, options):
    monkeypatch.setattr(progress, "SECONDS_UNSEEN", 0.0)
    monkeypatch.setattr(progress, "_quiet", False)
    corpus = str(tmp_path / "corpus")
    commands = {
        "sound scenes": lambda: make_sample_corpus.main(
            ["--output", corpus, "--sizes", "1", "1", "1", "--num-proc", "1", *options]
        ),
        "building": lambda: build_clotho.main(["--root", corpus, "--num-proc", "1", *options]),
    }
    check(commands, capsys, options)


def check(commands, capsys, options) -> None:
    """Check that each of `commands` has a line of its own, unless `options` say --quiet."""
    for shown, command in commands.items():
        assert command() == 0
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith(f"{shown}: ")]
        assert bool(lines) == (not options), captured.err
        assert captured.out.strip()
