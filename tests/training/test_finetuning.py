"""Fine-tuning of CLAP and PE-Audio: the configs, N processes, micro-batches, resume, cached frames.

Letters: N pairs, B clips.
"""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import train as train_script
from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation import similarity_matrix
from retrieval.evaluation.result import evaluate_split
from retrieval.models.build import build_model, build_model_without_weights, warnings_of
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.frame_cache import cached_frames
from retrieval.models.pretrained import load_pretrained
from retrieval.moments.locator import Locator
from tests import many_processes, warm_processes
from tests.pretrained_models import RATE, make
from tests.timed_tones import write_timed_cache
from tests.training.test_micro_batches import assert_equal

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SECONDS = 2.0  # of the clips of the fixture `tiny`
FAMILIES = {"finetune_clap": "clap", "clotho_clap": "clap", "finetune_pe_frame_tap": "pe_a_frame"}
MOMENTS = "finetune_pe_frame_moments"
# Of the small models: CLAP hears 1 s at once.
SIZES = {
    "clap": ["dim=8", "audio_encoder.window_seconds=1", "audio_encoder.hop_seconds=1"],
    "pe_a_frame": ["dim=16", "pooling.attention_dim=16"]
    + [f"audio_encoder.{name}_seconds={SECONDS}" for name in ("window", "hop")],
}
SIZES["pe_audio"] = SIZES["pe_a_frame"]
# PE-Audio with its own pooling: both models, by the configuration of one
KEPT = {
    "pe_a_frame": ["pooling.name=average", "pooling.similarity=dot"],
    "pe_audio": ["pooling.name=average", "pooling.similarity=dot", "audio_encoder.readout=pooled"],
}
LEARNING = ["audio_encoder.frozen=false", "text_encoder.frozen=false", "data.frame_cache=null"]
NO_DROPOUT = ["text_encoder.dropout=0", "pooling.attention_dropout=0"]
BATCH_SIZE = 8


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> dict[str, Path]:
    folders = {family: tmp_path_factory.mktemp(family) for family in SIZES}
    for family, folder in folders.items():
        make(family, folder)
    # no setting switches off the dropout of CLAP's audio encoder, which no two processes share
    path = folders["clap"] / "config.json"
    settings = json.loads(path.read_text())
    settings["audio_config"]["hidden_dropout_prob"] = 0.0
    path.write_text(json.dumps(settings))
    return folders


def overrides(
    tiny: Path, pretrained: dict[str, Path], name: str, output: Path, family: str = ""
) -> list[str]:
    """Settings with which a config of the project runs on small models and sounds."""
    family = family or (FAMILIES | {MOMENTS: "pe_a_frame"})[name]
    folder = pretrained[family]
    names = ("audio_encoder.checkpoint", "text_encoder.name", "train.init_from")
    return [
        *(f"{setting}={folder}" for setting in names),
        *SIZES[family],
        f"data.cache={tiny / 'cache'}",
        f"data.sample_rate={RATE}",
        f"data.max_seconds={SECONDS}",
        "data.num_workers=0",
        "evaluation.num_pictures=0",
        f"train.batch_size={BATCH_SIZE}",
        "train.epochs=2",
        f"train.output={output}",
    ] + ([f"data.frame_cache={output.parent / 'frames'}"] if "finetune" in name else [])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_starts_at_the_published_score_and_learns(tiny, pretrained, tmp_path, name):
    settings = overrides(tiny, pretrained, name, tmp_path / "run")
    arguments = ["--config", str(CONFIGS / f"{name}.yaml"), *settings]
    assert train_script.main(arguments) == 0
    history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").open()]
    assert [line["epoch"] for line in history] == [0, 1, 2]
    split = open_cache(tiny / "cache").split("validation")
    model = load_pretrained(pretrained[FAMILIES[name]])
    model.hear_at(split.sample_rate)
    if name == "finetune_pe_frame_tap":  # the new pooling starts from other scores
        model = build_model(load_config(CONFIGS / f"{name}.yaml", settings)).eval()
    scored = evaluate_split(model, split, audio_batch_size=4, text_batch_size=8)
    for metric, value in scored.metrics["text_to_audio"].items():
        assert history[0][f"validation/text_to_audio/{metric}"] == pytest.approx(value, abs=1e-6)
    trained = DualEncoder.from_pretrained(tmp_path / "run/last")
    start = build_model(load_config(CONFIGS / f"{name}.yaml", settings)).state_dict()
    moved = {
        key.partition(".")[0]
        for key, value in trained.state_dict().items()
        if not torch.equal(value, start[key])
    }
    expected = {"audio_projection", "text_projection"}
    expected |= {"pooling"} if "tap" in name else set()
    expected |= {"audio_encoder", "text_encoder"} if name == "clotho_clap" else set()
    assert moved - {"temperature"} == expected


@pytest.mark.parametrize("family", KEPT)
def test_pe_audio_keeps_its_own_pooling(tiny, pretrained, tmp_path, family):
    name = "finetune_pe_frame_tap"
    settings = overrides(tiny, pretrained, name, tmp_path / "run", family) + KEPT[family]
    assert train_script.main(["--config", str(CONFIGS / f"{name}.yaml"), *settings]) == 0
    history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").open()]
    split = open_cache(tiny / "cache").split("validation")
    model = load_pretrained(pretrained[family])
    model.hear_at(split.sample_rate)
    scored = evaluate_split(model, split, audio_batch_size=4, text_batch_size=8)
    for metric, value in scored.metrics["text_to_audio"].items():
        assert history[0][f"validation/text_to_audio/{metric}"] == pytest.approx(value, abs=1e-6)
    trained, start = (
        found.state_dict() for found in (DualEncoder.from_pretrained(tmp_path / "run/last"), model)
    )
    moved = {
        key.partition(".")[0] for key, own in trained.items() if not torch.equal(own, start[key])
    }
    assert moved - {"temperature"} == {"audio_projection", "text_projection"}
    made = {"family": family}
    whole = first_step(tiny, pretrained, name, tmp_path / "whole", *KEPT[family], **made)
    parts = [*KEPT[family], "train.micro_batch_size=3"]
    assert_equal(first_step(tiny, pretrained, name, tmp_path / "parts", *parts, **made), whole)


def test_a_head_on_pe_a_frame_leaves_its_own_rule_as_it_was(tiny, pretrained, tmp_path):
    cache = write_timed_cache(tmp_path / "cache", {"development": 8, "validation": 2})
    settings = overrides(tiny, pretrained, MOMENTS, tmp_path / "run")
    settings = [own for own in settings if not own.startswith(("data.cache", "train.epochs"))]
    settings += [f"data.cache={cache}", "train.epochs=1"]
    arguments = ["--config", str(CONFIGS / f"{MOMENTS}.yaml"), *settings]
    assert train_script.main([own for own in arguments if "attention_dim" not in own]) == 0
    trained = DualEncoder.from_pretrained(tmp_path / "run/last")
    original = load_pretrained(pretrained["pe_a_frame"])
    original.hear_at(RATE)
    theirs, ours = original.state_dict(), trained.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    assert {key.partition(".")[0] for key in ours.keys() - theirs.keys()} == {"moment_head"}
    samples, found = open_cache(cache).split("validation").read(0), []
    for model in (original, trained):
        locator = Locator(model, "runs")
        text = model.encode_text(["a low tone"]).detach()
        found.append(locator.locate(text, locator.hear([samples])).moments)
    assert found[0] == found[1] and Locator(trained).method == "head"


# --- settings that do not fit ---


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["audio_encoder.readout=frames"], "audio_encoder.readout=pooled"),
        (["text_encoder.as_written=false", "dim=9"], "text_encoder.as_written=True dim=8"),
        (["projection.name=linear"], "set projection.name=mlp"),
        (["pooling.similarity=dot"], "set pooling.similarity=cosine"),
    ],
)
@pytest.mark.parametrize("build", [build_model, build_model_without_weights])
def test_the_error_names_the_settings_that_do_not_fit(
    tiny, pretrained, tmp_path, changes, named, build
):
    settings = overrides(tiny, pretrained, "clotho_clap", tmp_path / "run") + changes
    with pytest.raises(UserError) as caught:
        build(load_config(CONFIGS / "clotho_clap.yaml", settings))
    assert str(caught.value).endswith(named)


def test_tap_on_pooled_vectors_is_warned_of(tiny, pretrained, tmp_path):
    settings = overrides(tiny, pretrained, "clotho_clap", tmp_path / "run")
    config = load_config(CONFIGS / "clotho_clap.yaml", [*settings, "pooling.name=tap"])
    assert any("equal copies" in warning for warning in warnings_of(config))
    config = load_config(CONFIGS / "clotho_clap.yaml", settings)
    assert not any("equal copies" in warning for warning in warnings_of(config))


# --- the whole batch, in parts and on many processes ---


def first_step(
    tiny: Path,
    pretrained: dict[str, Path],
    name: str,
    output: Path,
    *more: str,
    family: str = "",
):
    """Loss and gradients of a step with all weights learning, in float64."""
    settings = overrides(tiny, pretrained, name, output, family) + LEARNING + NO_DROPOUT
    path = CONFIGS / f"{name}.yaml"
    run = many_processes.start(tiny, output, [*settings, *more], torch.float64, path)
    result = many_processes.step(run, 0)
    return result["loss"], result["gradients"]


def work(rank: int, port: int, tiny: Path, pretrained: dict[str, Path], folder: Path) -> None:
    many_processes.join(rank, 2, port)
    found = {
        name: first_step(tiny, pretrained, name, folder / f"{name}_of_2")
        for name in ("finetune_clap", "finetune_pe_frame_tap")
    }
    torch.save(found, folder / f"{rank}.pt")
    many_processes.leave()


@pytest.fixture(scope="module")
def of_two(tiny, pretrained, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("of_two")
    arguments = (many_processes.free_port(), tiny, pretrained, folder)
    warm_processes.spawn(work, arguments, nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["finetune_clap", "finetune_pe_frame_tap"])
def test_processes_and_parts_give_loss_and_gradients_of_the_whole(
    tiny, pretrained, tmp_path, of_two, name
):
    whole = first_step(tiny, pretrained, name, tmp_path / "whole")
    assert {key.partition(".")[0] for key in whole[1]} >= {"audio_encoder", "text_encoder"}
    for found in of_two:
        assert_equal(found[name], whole)
    size = "train.micro_batch_size=3"
    assert_equal(first_step(tiny, pretrained, name, tmp_path / "parts", size), whole)
    # control: other weights have other gradients
    fixed = "loss.temperature=0.5", "loss.learnable_temperature=false"
    other = first_step(tiny, pretrained, name, tmp_path / "other", *fixed)
    with pytest.raises(AssertionError):
        assert_equal(other, whole)


@pytest.mark.parametrize("name", ["clotho_clap", "finetune_pe_frame_tap"])
def test_an_interrupted_run_goes_on_to_the_same_weights(tiny, pretrained, tmp_path, name):
    weights = []
    for folder, stop in (("undisturbed", ""), ("interrupted", "within an epoch")):
        settings = overrides(tiny, pretrained, name, tmp_path / folder)
        arguments = ["--config", str(CONFIGS / f"{name}.yaml"), *settings]
        many_processes.run_script(arguments, stop)
        if stop:
            assert not (tmp_path / folder / "metrics.json").exists()
            assert many_processes.run_script([*arguments, "--resume"]) == "0"
        weights.append(DualEncoder.from_pretrained(tmp_path / folder / "last").state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("name", ["finetune_clap", "finetune_pe_frame_tap"])
def test_cached_frames_score_as_sounds_do(tiny, pretrained, tmp_path, name):
    settings = overrides(tiny, pretrained, name, tmp_path / "run")
    model = build_model(load_config(CONFIGS / f"{name}.yaml", settings)).eval()
    split = open_cache(tiny / "cache").split("validation")
    frames = cached_frames(
        model, split, tmp_path / "frames", Accelerator(), batch_size=4, num_workers=0
    )
    captions = [captions[0] for captions in split.captions]
    expected, found = (
        similarity_matrix(model, captions, source, audio_batch_size=3) for source in (split, frames)
    )
    assert (found - expected).abs().max() < 2e-3  # float16 on disk
    assert (found - expected.flip(1)).abs().max() > 1e-2  # negative control: other clips
