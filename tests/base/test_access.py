"""Files follow the umask, whatever library writes them; a missing permission is named as such."""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import py7zr
import pytest
import soundfile
import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import train
from data_prep import build_folder
from data_prep.corpora import exclusions, resumable_download, wavcaps_files
from data_prep.corpora.audio_files import audio_of_corpus, passed_over_note
from retrieval.base.access import check_readable, follow_umask
from retrieval.base.errors import UserError
from retrieval.base.sound_files import why_unreadable
from retrieval.config import Config, load_config
from retrieval.config import read_config as config_of_run
from retrieval.data import open_cache
from retrieval.evaluation.options import check_checkpoints
from retrieval.evaluation.relevance import read_relevance
from retrieval.evaluation.report.against import Against
from retrieval.evaluation.score_files import open_scores, write_scores
from retrieval.models.audio.huggingface import HuggingFaceAudioEncoder, huggingface_arguments
from retrieval.models.audio.official import read_official
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.frame_cache import CaptionFeatures
from retrieval.models.pretrained.lightning import read_lightning
from retrieval.models.text import TextEncoder, load_tokenizer, text_architecture
from retrieval.models.weights import write_weights
from retrieval.search import AudioIndex
from retrieval.search.__main__ import main as search
from retrieval.search.model_identity import load_model
from retrieval.sharing.export.command import main as export
from retrieval.training.checkpoint import Progress, load_state, save_state
from retrieval.training.states import latest_state
from tests.conftest import SCORING_RECORD, run_here, tone, write_text_encoder


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
        expected = {Path(place): 0o777 & ~mask} | {
            Path(place, name): 0o666 & ~mask for name in names
        }
        found = {path: stat.S_IMODE(path.lstat().st_mode) for path in expected}
        wrong |= {
            str(path.relative_to(folder)): oct(found[path])
            for path in expected
            if found[path] != expected[path]
        }
    assert wrong == {}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for note in range(3):
        soundfile.write(
            folder / f"{note}.wav", tone(note, 0, 1.5, np.random.default_rng(note)), 16_000
        )
    (folder / "captions.csv").write_text(
        "file_name,caption\n" + "".join(f"{note}.wav,a tone\n" for note in range(3))
    )
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
    assert {path.name for path in tmp_path.rglob("*")} >= {
        "optimizer.bin",
        "model.safetensors",
        "custom_checkpoint_0.pkl",
    }
    check_modes(tmp_path / "run", 0o027)


def test_a_whole_run_and_all_that_is_made_of_it_follow_the_umask(
    tiny: Path, sounds: Path, tmp_path: Path
):
    """A run with its models, frame cache, index with ONNX text encoder, Parquet, a cache."""
    out = tmp_path / "out"
    with umask(0o027):
        out.mkdir()
        settings = [
            "train.max_steps=2",
            "audio_encoder.frozen=true",
            f"data.frame_cache={out}/frames",
            f"train.output={out}/run",
        ]
        assert (
            run_here(train.main, "--config", f"{tiny}/tiny.yaml", "--quiet", *settings).returncode
            == 0
        )
        model = f"{out}/run/best"
        assert (
            run_here(
                search,
                "index",
                str(sounds),
                "--checkpoint",
                model,
                "--index",
                f"{out}/index",
                "--quiet",
            ).returncode
            == 0
        )
        assert (
            run_here(search, "query", "a tone", "--index", f"{out}/index", "--fast-text").returncode
            == 0
        )
        export(
            [
                "--checkpoint",
                model,
                "--parquet",
                f"{out}/vectors.parquet",
                "--cache",
                f"{tiny}/cache",
                "--quiet",
            ]
        )
        built = run_here(
            build_folder.main,
            "--audio",
            str(sounds),
            "--csv",
            f"{sounds}/captions.csv",
            "--output",
            f"{out}/cache",
        )
        assert built.returncode == 0, built.stderr
        DualEncoder.from_pretrained(model).save_pretrained(out / "saved")
    found = {path.name for path in out.rglob("*")}
    assert found >= {
        "model.safetensors",
        "frames.npy",
        "index.sqlite",
        "text.onnx",
        "vectors.parquet",
        "cache.json",
    }, found
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
        resumable_download.extract_wav_folder(
            tmp_path / "sounds.7z", tmp_path / "unpacked", max_bytes=1e9
        )
    check_modes(tmp_path / "unpacked", 0o022)


# --- no permission ---


@pytest.fixture
def shared(tmp_path) -> Iterator[Path]:
    """A folder that every user may enter, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for place, subfolders, _names in os.walk(folder):
        for name in subfolders:
            Path(place, name).chmod(0o755)  # before they are walked
    shutil.rmtree(folder)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Act as a user who is not root and owns nothing here: root may read everything.

    Skips if the project itself is closed to others.
    """
    if os.geteuid():
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        for path in (Path(__file__), Path(torch.__file__)):
            try:
                check_readable(path, "test")
            except UserError:
                pytest.skip(f"other users may not read {path}")
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_a_folder_of_wavcaps_that_is_closed_is_not_called_empty(shared: Path):
    folder = shared / "json_files" / "SoundBible"
    (shared / "audio" / "SoundBible").mkdir(parents=True)
    folder.mkdir(parents=True)
    (folder / "final.json").write_text('{"data": [{"id": "1", "caption": "a tone"}]}')
    folder.chmod(0o700)
    with (
        without_privileges(),
        pytest.raises(UserError, match="SoundBible cannot be read: Permission denied"),
    ):
        wavcaps_files.read_wavcaps(
            shared, shared / "audio", ["SoundBible"], exclusions.Exclusions()
        )


def make_text_encoder(place: Path, tiny: Path) -> None:
    transformers.RobertaModel(
        transformers.RobertaConfig.from_pretrained(write_text_encoder(place))
    ).save_pretrained(place)


def read_text_encoder(place: Path) -> None:
    encoder = TextEncoder(text_architecture(str(place), 0.0), None)
    load_tokenizer(place)
    encoder.load_pretrained(str(place))


def make_audio_encoder(place: Path, tiny: Path) -> None:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    transformers.ASTModel(
        transformers.ASTConfig(num_mel_bins=16, max_length=100, **sizes)
    ).save_pretrained(place)
    transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=100).save_pretrained(place)


def read_audio_encoder(place: Path) -> None:
    HuggingFaceAudioEncoder(**huggingface_arguments(str(place))).load_official(place)


def make_run(place: Path, tiny: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.register_for_checkpointing(Progress())
    save_state(accelerator, place, Progress())
    (place / "config.yaml").write_text(yaml.safe_dump(Config().model_dump()))


def make_scores(place: Path, tiny: Path) -> None:
    split = open_cache(tiny / "cache").split("evaluation")
    columns = [(torch.arange(len(split)), torch.zeros(2 * len(split), len(split)))]
    write_scores(place, columns, split, SCORING_RECORD)


def make_results(place: Path, tiny: Path) -> None:
    place.mkdir()
    (place / "metrics.json").write_text('{"num_clips": 1}')
    (place / "ranks.csv").write_text("query,clip,top_1,ranks\na,b,c,1\n")


def make_frames(place: Path, tiny: Path) -> None:
    place.mkdir()
    np.save(place / "features.npy", np.zeros((1, 2), np.float32))


def read_states(place: Path) -> None:
    if latest_state(place) is None:
        raise AssertionError("no state is found")
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.register_for_checkpointing(progress := Progress())
    load_state(accelerator, place, progress, steps_per_epoch=1, seed=0)
    AcceleratorState._reset_state(reset_partial_state=True)


def make_index(place: Path, tiny: Path) -> None:
    MODEL(tiny).save_pretrained(place.parent.parent / "model")
    folder = place.parent.parent / "recordings"
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(0, 0, 1.5, np.random.default_rng(0)), 16_000)
    AudioIndex.build(folder, place.parent.parent / "model", place)


def make_captions(place: Path, tiny: Path) -> None:
    folder = place.parent.parent / "recordings"
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(0, 0, 1.5, np.random.default_rng(0)), 16_000)
    place.write_text("file_name,caption\na.wav,a tone\n")


def build_from_captions(place: Path) -> None:
    with tempfile.TemporaryDirectory() as output:
        recordings = str(place.parent.parent / "recordings")
        ended = run_here(
            build_folder.main,
            "--audio",
            recordings,
            "--csv",
            str(place),
            "--output",
            f"{output}/cache",
            "--quiet",
        )
        if ended.returncode:
            raise UserError(ended.stderr.strip())


RELEVANCE = "query,audio_filenames\na,\"['b.wav']\"\n"
MODEL = lambda tiny: build_model(load_config(tiny / "tiny.yaml", []))  # noqa: E731
# How to make each kind of file or folder that a user names, how to read it, and the files in it
# that are needed.
READERS: dict[
    str, tuple[Callable[[Path, Path], object], Callable[[Path], object], tuple[str, ...]]
] = {
    "config": (
        lambda place, tiny: shutil.copy(tiny / "tiny.yaml", place),
        lambda place: load_config(place, []),
        (),
    ),
    "cache": (
        lambda place, tiny: shutil.copytree(tiny / "cache", place),
        lambda place: open_cache(place).split("development"),
        ("cache.json", "development", "development/state.json", "development/*.arrow"),
    ),
    "model": (
        lambda place, tiny: MODEL(tiny).save_pretrained(place),
        DualEncoder.from_pretrained,
        (
            "config.json",
            "model.safetensors",
            "tokenizer",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
        ),
    ),
    "model of the search": (
        lambda place, tiny: MODEL(tiny).save_pretrained(place),
        load_model,
        ("model.safetensors",),
    ),
    "model to score": (
        lambda place, tiny: MODEL(tiny).save_pretrained(place),
        lambda place: check_checkpoints([place]),
        (),
    ),
    "ckpt": (lambda place, tiny: torch.save({"state_dict": {}}, place), read_lightning, ()),
    "audio weights": (
        lambda place, tiny: torch.save({"a": torch.zeros(1)}, place),
        read_official,
        (),
    ),
    "text encoder": (
        make_text_encoder,
        read_text_encoder,
        ("config.json", "tokenizer.json", "model.safetensors"),
    ),
    "audio encoder": (
        make_audio_encoder,
        read_audio_encoder,
        ("config.json", "preprocessor_config.json", "model.safetensors"),
    ),
    "run": (make_run, config_of_run, ("config.yaml",)),
    "states": (make_run, read_states, ("states", "states/*", "states/*/optimizer.bin")),
    "scores": (make_scores, open_scores, ("scores.npy", "*.json")),
    "results": (make_results, lambda place: Against(place, None), ("metrics.json", "ranks.csv")),
    "relevance": (lambda place, tiny: place.write_text(RELEVANCE), read_relevance, ()),
    "frame cache": (
        make_frames,
        lambda place: CaptionFeatures(["a"], place / "features.npy"),
        ("features.npy",),
    ),
    "index": (make_index, AudioIndex.open, ("index.sqlite", "vectors-0.f32")),
    "captions": (make_captions, build_from_captions, ()),
}
CASES = [
    (kind, place) for kind, (_, _, inside) in READERS.items() for place in ("..", ".", *inside)
]


@pytest.mark.parametrize(
    ("kind", "closed"), CASES, ids=[f"{kind}-{closed}" for kind, closed in CASES]
)
def test_no_permission_is_told_from_absent_and_damaged(
    tiny: Path, shared: Path, kind: str, closed: str
):
    make, read, _ = READERS[kind]
    (shared / "above").mkdir()
    place = shared / "above" / "it"
    make(place, tiny)
    for path in shared.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    read(place)  # imports what it needs, which others might not read
    with without_privileges():
        read(place)  # negative control: others may read it
    found = (
        next(place.glob(closed))
        if "*" in closed
        else (place / closed if closed != ".." else place.parent)
    )
    mode = found.stat().st_mode
    found.chmod(0)
    try:
        with (
            without_privileges(),
            pytest.raises((UserError, PermissionError), match="(?i)permission") as caught,
        ):
            read(place)
    finally:
        found.chmod(mode)
    assert not re.search("damaged|does not exist|truncated|is no |missing", str(caught.value)), (
        caught.value
    )
    assert "\n" not in str(caught.value) and str(found) in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(0o000, "Permission denied"), (0o444, "Permission denied")],
    ids=["closed", "listed only"],
)
def test_folders_of_sounds_that_may_not_be_read_are_named(
    shared: Path, sounds: Path, mode: int, reason: str
):
    shutil.copytree(sounds, shared / "open")
    shutil.copytree(sounds, shared / "closed")
    (shared / "open").chmod(0o755)
    (shared / "closed").chmod(mode)
    with without_privileges():
        found = audio_of_corpus(shared, "--audio")
        notes = passed_over_note(found) + [str(why_unreadable(path)) for path in found.paths]
        assert [note for note in notes if reason in note]
        assert {path.name for path in found.paths if why_unreadable(path) is None} == {
            "0.wav",
            "1.wav",
            "2.wav",
        }
        if mode == 0:
            with pytest.raises(UserError, match=reason):
                audio_of_corpus(shared / "closed", "--audio")


def test_what_others_own_but_may_be_read_is_said_nothing_of(shared: Path):
    (shared / "file").touch()
    (shared / "link").symlink_to("nowhere")
    (shared / "results").mkdir(mode=0)  # of no use to a reader of the folder
    with without_privileges():
        check_readable(shared, "folder")
        check_readable(shared / "absent" / "file", "file")
        check_readable("roberta-large", "text encoder")
