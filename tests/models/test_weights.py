"""Models whose tensors share memory are saved and load back equal; failed saves name the cause."""

import errno
import os
import resource
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchaudio
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from torch.nn.functional import pad

from retrieval.base.errors import UserError
from retrieval.base.files import disk_remedy
from retrieval.base.folders import recover_folder
from retrieval.base.stopping import Interrupted
from retrieval.config import load_config
from retrieval.models import audio
from retrieval.models.audio.encoder import AudioEncoder
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.weights import own_memory, read_weights, write_weights
from retrieval.training import checkpoint, loop

HOP = 400


class StockMel(AudioEncoder):
    """A quickly written audio encoder: torchaudio's spectrogram, and buffers of every kind."""

    sample_rate, num_mel_bins, feature_dim = 16_000, 32, 24

    def __init__(self):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            16_000, n_fft=800, hop_length=HOP, n_mels=32
        )
        self.features = nn.ModuleList([nn.Linear(32, 24), nn.Linear(24, 24)])
        self.tied = nn.Linear(24, 24)
        self.tied.weight = self.features[1].weight
        steps = torch.arange(64.0)
        self.register_buffer("first_half", steps[:32])
        self.register_buffer("second_half", steps[32:])
        self.register_buffer("expanded", torch.ones(1).expand(24))
        self.register_buffer("transposed", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("grid", torch.arange(6.0).reshape(2, 3))
        self.register_buffer("flat_grid", self.grid.view(-1))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("scalar", torch.tensor(2.0))

    def num_frames(self, num_samples: int) -> int:
        return num_samples // HOP + 1

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        return (self.mel(waveform) + 1e-5).log()  # (W, 32, T)

    def forward(self, waveform: torch.Tensor, augment=None) -> torch.Tensor:
        x = (
            self.log_mel(pad(waveform, (0, max(0, 800 - waveform.shape[1]))))
            + self.first_half[:, None] / self.second_half[:, None]
        )
        return self.tied(self.features[1](self.features[0](x.transpose(1, 2)))) * self.expanded


@pytest.fixture
def stock_mel(monkeypatch) -> list[str]:
    monkeypatch.setitem(audio.AUDIO_ENCODERS, "stock_mel", StockMel)
    return ["audio_encoder={name: stock_mel}", "evaluation.num_pictures=0"]


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    own, other = found.state_dict(), expected.state_dict()
    assert own.keys() == other.keys()
    for name in own:
        assert own[name].shape == other[name].shape and torch.equal(own[name], other[name]), name


def test_tensors_that_share_memory_come_back(tmp_path):
    torch.manual_seed(1)
    model = StockMel()
    with pytest.raises(RuntimeError):  # negative control: what safetensors itself does with it
        save_model(model, tmp_path / "refused.safetensors")
    write_weights(model, tmp_path / "weights.safetensors")
    other = StockMel()
    own_memory(other)
    read_weights(other, tmp_path / "weights.safetensors")
    assert_same(other, model)
    assert other.tied.weight is other.features[1].weight
    assert "tied.weight" not in load_file(tmp_path / "weights.safetensors")  # written once
    waveform = torch.randn(2, 16_000)
    assert torch.equal(other(waveform), model(waveform))


def test_files_of_safetensors_and_of_accelerate_are_read(tmp_path):
    """Both omit names of tied weights.

    Accelerate does not say which, and adds `module.` with several processes.
    """
    model, other = (
        nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}),
        nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}),
    )
    for each in (model, other):
        each["b"].weight = each["a"].weight
    state = model.state_dict()
    save_model(model, tmp_path / "safetensors")
    save_file({name: state[name] for name in state if name != "b.weight"}, tmp_path / "accelerate")
    save_file(
        {f"module.{name}": state[name] for name in state if name != "a.weight"},
        tmp_path / "several",
    )
    for name in ("safetensors", "accelerate", "several"):
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        read_weights(other, tmp_path / name)
        assert_same(other, model)
    model["b"].weight = nn.Parameter(torch.zeros(3, 3))
    read_weights(model, tmp_path / "safetensors")  # tied where it was written, as the file says
    assert_same(model, other)
    with pytest.raises(RuntimeError, match="b.weight"):
        read_weights(model, tmp_path / "accelerate")


def test_what_no_file_can_hold_is_named(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("on_meta", torch.empty(3, device="meta"))
    with pytest.raises(UserError, match="weight on_meta is on the meta device"):
        write_weights(model, tmp_path / "weights.safetensors")
    del model.on_meta
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(UserError, match="weight sparse"):
        write_weights(model, tmp_path / "weights.safetensors")


def test_a_run_with_a_stock_spectrogram_saves_resumes_and_loads(
    tiny, tmp_path, stock_mel, monkeypatch
):
    """An interrupted run goes on bit for bit as one that was not: the state holds every tensor."""
    loop.train(load_config(tiny / "tiny.yaml", [f"train.output={tmp_path / 'whole'}", *stock_mel]))
    config, original = (
        load_config(tiny / "tiny.yaml", [f"train.output={tmp_path / 'run'}", *stock_mel]),
        loop.train_step,
    )

    def stopped_in_step_3(run, batch):
        if run.progress.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, batch)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stopped_in_step_3)
        loop.train(config)
    # not that of step 2 as well
    assert [path.name for path in (tmp_path / "run" / "states").iterdir()] == ["step-00000003"]
    loop.train(config, resume=True)
    whole, resumed = (
        DualEncoder.from_pretrained(tmp_path / name / "last") for name in ("whole", "run")
    )
    assert_same(resumed, whole)
    assert resumed.audio_encoder.tied.weight is resumed.audio_encoder.features[1].weight
    started = load_config(
        tiny / "tiny.yaml",
        [
            f"train.output={tmp_path / 'next'}",
            f"train.init_from={tmp_path / 'run' / 'last'}",
            *stock_mel,
        ],
    )
    loop.train(
        started.model_copy(update={"train": started.train.model_copy(update={"max_steps": 1})})
    )


# --- the disk and others ---


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: an illegal memory access"), OSError("no tokenizer of that name")],
    ids=repr,
)
def test_an_error_that_is_not_the_disk_s_does_not_blame_it(tmp_path, error):
    def fails(_folder):
        raise error

    with pytest.raises(type(error)) as caught:
        checkpoint.save_model(SimpleNamespace(save_pretrained=fails), tmp_path / "best", {})
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.EIO, "Input/output error"), "check"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission"),
        (OSError(errno.ENOTDIR, "Not a directory"), "check that path"),
        (SafetensorError("Error while serializing: invalid header"), None),
        (RuntimeError("Some tensors share memory"), None),
        (OSError("Can't load tokenizer"), None),
    ],
)
def test_remedies(error, remedy):
    assert remedy in disk_remedy(error) if remedy else disk_remedy(error) is None


def too_small_for(write, path: Path) -> Exception:
    """Return the error of `write(path)` when files may have 4,096 bytes, as with `ulimit -f 4`."""
    limits, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        write(path)
    except Exception as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    raise AssertionError("it was written")


WRITERS = {
    "torch.save": lambda path: torch.save(torch.zeros(100_000), path),
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
    "Python": lambda path: path.write_bytes(bytes(100_000)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_libraries_that_may_write_no_more_are_understood(tmp_path, writer):
    error = too_small_for(WRITERS[writer], tmp_path / "file")
    assert disk_remedy(error), repr(error)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("no permission to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_understood_whoever_writes(full_disk, writer):
    with pytest.raises(Exception) as caught:
        WRITERS[writer](full_disk / "file")
    assert "make room" in disk_remedy(caught.value), repr(caught.value)


def test_a_model_that_was_killed_between_its_two_renames_is_there_on_resume(tmp_path):
    """.best.old is the model before, .best.partial the complete one, not yet renamed."""
    for name in (".best.old", ".best.partial", "last", ".last.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    for name in ("best", "last"):
        recover_folder(tmp_path / name)
    assert (tmp_path / "best" / "weights").read_text() == ".best.partial" and (
        tmp_path / "last" / "weights"
    ).read_text() == "last"
