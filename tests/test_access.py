"""Files follow the umask whatever library writes them; a missing permission is told from absence and damage."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import py7zr
import pytest
import soundfile
import torch

from accelerate import Accelerator

import build_folder
import resumable_download
import train
from retrieval.base.access import follow_umask
from retrieval.checkpoint import Progress, save_state
from retrieval.export.__main__ import main as export
from retrieval.models import DualEncoder
from retrieval.models.weights import write_weights
from retrieval.search.__main__ import main as search
from tests.conftest import run_here, tone


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def check_modes(folder: Path, mask: int) -> None:
    """Every file has mode 0666 without `mask`, every folder 0777."""
    wrong = {}
    for place, _subfolders, names in os.walk(folder):
        expected = {Path(place): 0o777 & ~mask} | {Path(place, name): 0o666 & ~mask for name in names}
        found = {path: stat.S_IMODE(path.lstat().st_mode) for path in expected}
        wrong |= {str(path.relative_to(folder)): oct(found[path]) for path in expected if found[path] != expected[path]}
    assert wrong == {}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for note in range(3):
        soundfile.write(folder / f"{note}.wav", tone(note, 0, 1.5, np.random.default_rng(note)), 16_000)
    (folder / "captions.csv").write_text("file_name,caption\n" + "".join(f"{note}.wav,a tone\n" for note in range(3)))
    return folder


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002, 0o077])
def test_weights_follow_the_umask(tmp_path: Path, mask: int):
    with umask(mask):
        (tmp_path / "new").mkdir()
        write_weights(torch.nn.Linear(2, 2), tmp_path / "new" / "model.safetensors")
        check_modes(tmp_path / "new", mask)


def test_states_follow_the_umask(tmp_path: Path):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.register_for_checkpointing(progress := Progress())
    with umask(0o027):
        save_state(accelerator, tmp_path / "run", progress)
    assert {path.name for path in tmp_path.rglob("*")} >= {"optimizer.bin", "model.safetensors", "custom_checkpoint_0.pkl"}
    check_modes(tmp_path / "run", 0o027)


def test_a_whole_run_and_all_that_is_made_of_it_follow_the_umask(tiny: Path, sounds: Path, tmp_path: Path):
    """Run with its models, frame cache, index with its ONNX text encoder, Parquet, cache of one's own recordings."""
    out = tmp_path / "out"
    with umask(0o027):
        out.mkdir()
        settings = ["train.max_steps=2", "audio_encoder.frozen=true", f"data.frame_cache={out}/frames", f"train.output={out}/run"]
        assert run_here(train.main, "--config", f"{tiny}/tiny.yaml", "--quiet", *settings).returncode == 0
        model = f"{out}/run/best"
        assert run_here(search, "index", str(sounds), "--checkpoint", model, "--index", f"{out}/index", "--quiet").returncode == 0
        assert run_here(search, "query", "a tone", "--index", f"{out}/index", "--fast-text").returncode == 0
        export(["--checkpoint", model, "--parquet", f"{out}/vectors.parquet", "--cache", f"{tiny}/cache", "--quiet"])
        built = run_here(build_folder.main, "--audio", str(sounds), "--csv", f"{sounds}/captions.csv", "--output", f"{out}/cache")
        assert built.returncode == 0, built.stderr
        DualEncoder.from_pretrained(model).save_pretrained(out / "saved")
    found = {path.name for path in out.rglob("*")}
    assert found >= {"model.safetensors", "frames.npy", "index.sqlite", "text.onnx", "vectors.parquet", "cache.json"}, found
    check_modes(out, 0o027)


def test_negative_control_a_file_of_mkstemp_is_seen(tmp_path: Path):
    with umask(0o022):
        (tmp_path / "new").mkdir()
        tempfile.mkstemp(dir=tmp_path / "new")
        tempfile.mkdtemp(dir=tmp_path / "new")
        with pytest.raises(AssertionError, match="0o600"):
            check_modes(tmp_path / "new", 0o022)
        follow_umask(tmp_path / "new")
        check_modes(tmp_path / "new", 0o022)


def test_unpacked_sounds_follow_the_umask(tmp_path: Path, sounds: Path):
    private = Path(shutil.copytree(sounds, tmp_path / "private"))
    for path in private.iterdir():
        path.chmod(0o600)
    with py7zr.SevenZipFile(tmp_path / "sounds.7z", "w") as archive:
        archive.writeall(private, "clotho_audio")
    with umask(0o022):
        resumable_download.extract_wav_folder(tmp_path / "sounds.7z", tmp_path / "unpacked")
    check_modes(tmp_path / "unpacked", 0o022)
