"""Shared fixtures: a tiny cache, a tiny text encoder folder and a config that trains on them in
seconds.

`retrieval` is imported before anything else, so that `import evaluate` gives the Hugging Face
package (retrieval/__init__.py).
"""

import contextlib
import copy
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# pytest-xdist's processes inherit it from the first one; see below
os.environ.pop("TQDM_DISABLE", None)

import retrieval  # noqa: F401

# isort: split
import datasets
import numpy as np
import pytest
import torch
import yaml

from retrieval.base import decoder_process, progress
from retrieval.base.command import run_main
from retrieval.evaluation.outputs import ScoringRecord

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"

SAMPLE_RATE = 16_000
NOTES = ("low", "middle", "high", "shrill")
RHYTHMS = ("steady", "pulsing", "rising")
SCORING_RECORD = ScoringRecord("runs/a/best", "cache", "0" * 64, SAMPLE_RATE, "no")

# A shell starts background jobs with SIGINT ignored, and the commands that these tests interrupt
# would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Progress lines appear after seconds, so on a busy machine in what a command says: the commands
# that tests start show none. tqdm reads the variable when it is imported, which it was above
# without it: in this process `no_progress_lines` does the same.
os.environ["TQDM_DISABLE"] = "1"
# In a job of several tasks each of the commands below would be refused.
for name in [name for name in os.environ if name.startswith("SLURM_")]:
    del os.environ[name]

# How long a test waits for another process or thread before it fails: no measure of speed.
PATIENCE = 300.0  # s

# beside other work on the cores, waiting threads cost more than they bring
torch.set_num_threads(1)
datasets.disable_progress_bars()


def pytest_collection_modifyitems(config, items):
    """Files run in order of name, tests marked slow at the end, or first where processes share the
    tests: none is left with a long one at last.
    """
    is_shared = hasattr(config, "workerinput")  # of pytest-xdist
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None) == is_shared)


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Until `condition()` holds; fails after PATIENCE, and at once where `process`, which is to
    bring it about, has ended.
    """
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        assert process is None or process.poll() is None or condition(), "the process ended early"
        time.sleep(0.01)


def run_module(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m name arguments` in the repository root."""
    return subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def run_here(main: Callable[[], int | None], *arguments: str) -> subprocess.CompletedProcess:
    """`main` as `python -m` starts it, but in this process: torch, which takes seconds to import,
    is here already.
    """
    num_threads = torch.get_num_threads()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.ExitStack() as printed,
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["command", *arguments])
        out, err = (
            printed.enter_context(contextlib.redirect_stdout(io.StringIO())),
            printed.enter_context(contextlib.redirect_stderr(io.StringIO())),
        )
        run_main(main)
    torch.set_num_threads(num_threads)
    return subprocess.CompletedProcess(
        arguments, ended.value.code or 0, out.getvalue(), err.getvalue()
    )


def mistake(main: Callable[[], int | None], *arguments: str) -> str:
    """What a command with a user's mistake prints on stderr before it ends with exit code 2, and
    nothing on stdout.
    """
    ended = run_here(main, *arguments)
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    return ended.stderr


def tone(note: int, rhythm: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A sound that its caption describes, float32 (S,)."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    frequency = 200.0 * 2.0 ** (note * 1.2) * (1 + (0.15 * time if rhythm == 2 else 0 * time))
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE)
    if rhythm == 1:
        wave *= np.sin(2 * np.pi * 3 * time) > 0
    return (wave + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def write_rows(path: Path, rows_of_split: dict[str, list[dict]], **info) -> Path:
    """An Arrow cache in the layout that data_prep writes; `info` wins over what its cache.json
    says.
    """
    features = datasets.Features(
        clip_id=datasets.Value("string"),
        file_name=datasets.Value("string"),
        audio=datasets.Value("large_binary"),
        num_samples=datasets.Value("int64"),
        captions=datasets.List(datasets.Value("string")),
    )
    if any("moments" in row for rows in rows_of_split.values() for row in rows):
        window = {name: datasets.Value("float64") for name in ("start", "end")}
        query = {name: datasets.Value("string") for name in ("qid", "query")}
        features["moments"] = datasets.List(query | {"windows": datasets.List(window)})
    tables, counts = {}, {}
    for split, rows in rows_of_split.items():
        columns = {name: [row[name] for row in rows] for name in features}
        tables[split] = datasets.Dataset.from_dict(columns, features=features)
        counts[split] = {
            "num_clips": len(rows),
            "num_captions": sum(map(len, columns["captions"])),
            "hours": 0.0,
        }
    datasets.DatasetDict(tables).save_to_disk(str(path))
    content = {
        "schema": 1,
        "corpus": "test",
        "codec": "pcm_s16le",
        "sample_rate": SAMPLE_RATE,
        "splits": counts,
        "skipped": [],
    }
    (path / "cache.json").write_text(json.dumps(content | info))
    return path


def write_cache(
    path: Path,
    splits: dict[str, int],
    seed: int = 0,
    seconds: tuple[float, float] = (0.6, 2.6),
    loudness: float = 1.0,
    **info,
) -> Path:
    """A cache of tones, two captions a clip."""
    rng = np.random.default_rng(seed)
    rows_of_split = {}
    for split, num_clips in splits.items():
        rows = rows_of_split[split] = []
        for i in range(num_clips):
            note, rhythm = i % len(NOTES), (i // len(NOTES)) % len(RHYTHMS)
            pcm = np.round(
                loudness * tone(note, rhythm, rng.uniform(*seconds), rng) * 32767
            ).astype("<i2")
            captions = [
                f"A {RHYTHMS[rhythm]} {NOTES[note]} tone.",
                f"Someone plays a {NOTES[note]}, {RHYTHMS[rhythm]} note.",
            ]
            names = {"clip_id": f"{split}/{i}.wav", "file_name": f"{i}.wav"}
            rows.append(
                names | {"audio": pcm.tobytes(), "num_samples": len(pcm), "captions": captions}
            )
    return write_rows(path, rows_of_split, **info)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file under `folder`, by its path in there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def same_environment():
    """Variables that a test, or what it calls, sets or deletes are put back: WORLD_SIZE of one test
    would fail all that follow.
    """
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def restored_sigterm():
    """An interrupted training leaves SIGTERM ignored, also for processes that later tests start."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def no_progress_lines(monkeypatch):
    """See TQDM_DISABLE above. Tests of progress set the seconds anew."""
    monkeypatch.setattr(progress, "SECONDS_UNSEEN", 1e9)


@pytest.fixture(autouse=True)
def same_numbers_in_any_order(request, monkeypatch):
    """A test module's RNG starts anew for every test: which tests run before it, in this process,
    is not always the same.
    """
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", copy.deepcopy(request.module.RNG))


@pytest.fixture
def crashing(monkeypatch):
    """Files are decoded by crashing_reader, which may crash."""
    decoder_process.close_all()
    monkeypatch.setattr(decoder_process, "READER", "tests.crashing_reader")
    yield monkeypatch
    decoder_process.close_all()


@pytest.fixture
def no_finished_folder(monkeypatch):
    """The rename at the end of a new folder fails, as it does where another program holds the old
    one.
    """
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".partial"):
            raise OSError(39, "Directory not empty")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)


def write_text_encoder(path: Path) -> Path:
    """A tiny RoBERTa folder (config and tokenizer, no weights)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig

    words = [*NOTES, *RHYTHMS, "a", "tone", "someone", "plays", "note"]
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    fast.save_pretrained(path)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
    }
    RobertaConfig(vocab_size=len(vocabulary), **shape).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder with `cache/`, `text_encoder/` and `tiny.yaml`: 12 + 8 + 8 clips, 24 pairs, 6 steps an
    epoch.
    """
    root = tmp_path_factory.mktemp("tiny")
    write_cache(root / "cache", {"development": 12, "validation": 8, "evaluation": 8})
    write_text_encoder(root / "text_encoder")
    settings = {
        "dim": 32,
        "data": {
            "cache": str(root / "cache"),
            "sample_rate": SAMPLE_RATE,
            "max_seconds": 2.0,
            "num_workers": 0,
        },
        "audio_encoder": {
            "embed_dim": 32,
            "depth": 1,
            "num_heads": 2,
            "window_seconds": 1.0,
            "hop_seconds": 1.0,
        },
        "text_encoder": {"name": str(root / "text_encoder"), "pretrained": False, "dropout": 0.1},
        "pooling": {
            "name": "tap",
            "attention_dim": 48,
            "attention_dropout": 0.1,
            "init": "identity",
        },
        "optimizer": {
            "lr": dict.fromkeys(
                ("audio_encoder", "text_encoder", "audio_projection", "text_projection", "pooling"),
                0.002,
            ),
            "schedule": {"rampdown_stop": 20.0, "warmup_epochs": 0.5},
        },
        "train": {"epochs": 2, "batch_size": 4, "log_every_steps": 1, "save_every_steps": 2},
        "evaluation": {"num_pictures": 1},
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return root


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps the first Accelerator's settings for the life of the process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
