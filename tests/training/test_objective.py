"""The loss of a run: its settings, learnable parameters, teachers, and a sentence encoder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retrieval.base.errors import UserError
from retrieval.base.stopping import Interrupted
from retrieval.config import load_config
from retrieval.data import PairDataset, collate_pairs, open_cache
from retrieval.evaluation.score_files import captions_fingerprint, write_scores
from retrieval.losses import LOSSES
from retrieval.losses.functions import listnet, nt_xent
from retrieval.models.build import build_model
from retrieval.models.text import TextEncoder, load_tokenizer, normalise_caption, text_architecture
from retrieval.training import loop
from retrieval.training.objective import CaptionSimilarity, Objective, TeacherScores
from retrieval.training.optim import parameter_groups
from tests.conftest import SCORING_RECORD, write_cache
from tests.training.test_training import losses_of

CPU = torch.device("cpu")
NUM_PAIRS, NUM_CLIPS = 24, 12


@pytest.fixture(scope="module")
def split(tiny):
    return open_cache(tiny / "cache").split("development")


@pytest.fixture(scope="module")
def pairs(split) -> PairDataset:
    return PairDataset(split, 32_000, seed=0)


@pytest.fixture(scope="module")
def teachers(split, tmp_path_factory) -> list[Path]:
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path_factory.mktemp("teacher"))
        write_teacher(
            folders[-1],
            split,
            np.random.default_rng(seed).uniform(-1, 1, (NUM_PAIRS, NUM_CLIPS)).astype(np.float32),
        )
    return folders


@pytest.fixture(scope="module")
def sentence_encoder(tiny, tmp_path_factory) -> Path:
    """A folder with weights, as a hub model has, and positions for longer sentences."""
    folder = tmp_path_factory.mktemp("sentence_encoder")
    architecture = text_architecture(str(tiny / "text_encoder"), dropout=0.1) | {
        "max_position_embeddings": 80,
        "initializer_range": 0.5,
    }
    torch.manual_seed(5)
    TextEncoder(architecture, 32).model.save_pretrained(folder)
    load_tokenizer(tiny / "text_encoder").save_pretrained(folder)
    return folder


def settings_of(name: str, pooling: str, teachers: list[Path], sentence_encoder: Path) -> list[str]:
    settings = [
        f"pooling.name={pooling}",
        "pooling.num_heads=4",
        f"loss.name={name}",
        f"loss.sentence_encoder={sentence_encoder}",
    ]
    settings += [
        "text_encoder.dropout=0",
        "pooling.attention_dropout=0",
        "pooling.dropout=0",
        "loss.learnable_temperature=true",
    ]
    return settings + (
        [f"loss.teachers=[{teachers[0]}, {teachers[1]}]"] if name == "distillation" else []
    )


@pytest.mark.parametrize("pooling", ["mean", "tap", "transformer"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_learnt_with_every_pooling(
    tiny, pairs, teachers, sentence_encoder, name, pooling
):
    """On a batch that comes again and again the loss falls, and every parameter that is trained has
    a gradient.
    """
    config = load_config(tiny / "tiny.yaml", settings_of(name, pooling, teachers, sentence_encoder))
    torch.manual_seed(0)
    model, objective = build_model(config), Objective(config.loss, pairs, CPU)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.optimizer.lr.model_dump()))
    batch = collate_pairs([pairs[0, index] for index in range(0, NUM_PAIRS, 3)])
    losses = []
    for _ in range(25):
        text, frames, mask = model(batch)
        loss = objective(model, model.score(text, frames, mask), batch["clips"], batch["pairs"])
        optimizer.zero_grad()
        loss.backward()
        assert [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ] == []
        optimizer.step()
        losses.append(loss.item())
    # Soft targets leave a rest that no model removes; what is left to learn is the distance to it.
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < losses[0] - 0.02


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_from_a_configuration(tiny, tmp_path, teachers, sentence_encoder, name):
    settings = settings_of(name, "tap", teachers, sentence_encoder)
    loop.train(
        load_config(
            tiny / "tiny.yaml",
            [
                *settings,
                "train.max_steps=2",
                "evaluation.num_pictures=0",
                f"train.output={tmp_path}/run",
            ],
        )
    )
    losses = losses_of(tmp_path / "run")
    assert list(losses) == [1, 2] and all(np.isfinite(value) for value in losses.values())
    assert (tmp_path / "run" / "metrics.json").exists()


def test_the_sigmoid_s_parameters_are_a_group_of_their_own_and_saved(tiny, tmp_path):
    config = load_config(
        tiny / "tiny.yaml",
        ["loss.name=sigmoid", "loss.bias=-5", "evaluation.num_pictures=0", "train.max_steps=4"],
    )
    groups = {
        group["name"]: group
        for group in parameter_groups(build_model(config), config.optimizer.lr.model_dump())
    }
    assert groups["loss"]["base_lr"] == 0.1 and {
        parameter.item() for parameter in groups["loss"]["params"]
    } == {1.0, -5.0}
    loop.train(
        config.model_copy(
            update={"train": config.train.model_copy(update={"output": str(tmp_path / "run")})}
        )
    )
    saved = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert (
        saved["loss_parameters.bias"].item() != -5.0
        and saved["loss_parameters.scale"].item() != 1.0
    )
    assert "loss" not in {
        group["name"]
        for group in parameter_groups(
            build_model(load_config(tiny / "tiny.yaml")), config.optimizer.lr.model_dump()
        )
    }


# --- teachers ---


def test_a_batch_gets_the_mean_of_the_teachers_scores_of_its_captions_and_clips(pairs, teachers):
    numbers, clips = (
        torch.tensor([3, 20, 7]),
        torch.tensor([pairs.pairs[index][0] for index in (3, 20, 7)]),
    )
    found = TeacherScores([str(folder) for folder in teachers], pairs).block(numbers, clips)
    files = [np.load(folder / "scores.npy") for folder in teachers]
    expected = [
        [np.mean([file[row, column] for file in files]) for column in clips.tolist()]
        for row in numbers.tolist()
    ]
    assert np.abs(found.numpy() - np.array(expected)).max() < 1e-6


def test_a_student_of_perfect_teachers_learns_the_pairs(tiny, split, tmp_path):
    """Scores of 1 for right pairs and 0 for all others are the supervised loss by another way."""
    clips = [clip for clip, captions in enumerate(split.captions) for _ in captions]
    scores = np.eye(NUM_CLIPS, dtype=np.float32)[clips]
    write_teacher(tmp_path / "teacher", split, scores)
    objective = Objective(
        loss_settings(tiny, f"loss.teachers=[{tmp_path}/teacher]"), PairDataset(split, 1, 0), CPU
    )
    model = build_model(load_config(tiny / "tiny.yaml"))
    numbers = torch.tensor([0, 5, 9, 14])
    batch_clips = torch.tensor(clips)[numbers]
    batch_scores = torch.rand(4, 4)
    found = objective(model, batch_scores, batch_clips, numbers)
    assert found.item() == pytest.approx(
        nt_xent(batch_scores, torch.eye(4, dtype=torch.bool), 0.05).item(), rel=1e-5
    )


def test_distillation_and_supervised_loss_are_added_with_their_weights(tiny, pairs, teachers):
    model, scores = build_model(load_config(tiny / "tiny.yaml")), torch.rand(3, 3)
    numbers = torch.tensor([0, 3, 5])
    clips = torch.tensor([pairs.pairs[index][0] for index in numbers])

    def loss(*overrides: str) -> float:
        return Objective(
            loss_settings(tiny, f"loss.teachers=[{teachers[0]}]", *overrides), pairs, CPU
        )(model, scores, clips, numbers).item()

    supervised, distilled = loss("loss.loss_weight=1", "loss.distill_weight=0"), loss()
    assert loss("loss.loss_weight=0.5", "loss.distill_weight=2") == pytest.approx(
        0.5 * supervised + 2 * distilled, rel=1e-6
    )
    triplet = loss("loss.loss_weight=1", "loss.distill_weight=0", "loss.supervised=triplet")
    assert triplet != pytest.approx(supervised, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.name=distillation"], "teachers"),
        (["loss.teachers=[a]"], "teachers.*nt_xent"),
        (["loss.name=distillation", "loss.teachers=[a]", "loss.distill_weight=0"], "both 0"),
        (
            ["loss.name=distillation", "loss.teachers=[a]", "loss.supervised=distillation"],
            "not distillation itself",
        ),
        (
            ["loss.name=distillation", "loss.teachers=[a]", "loss.supervised=nt_xnt"],
            "loss.supervised='nt_xnt'",
        ),
        (["loss.name=distillation", "loss.teachers=[a]"], "a"),
    ],
)
def test_a_distillation_that_cannot_be_is_refused_before_the_run_folder_is_made(
    tiny, tmp_path, overrides, message
):
    with pytest.raises(UserError, match=message):
        loop.train(load_config(tiny / "tiny.yaml", [*overrides, f"train.output={tmp_path}/run"]))
    assert not (tmp_path / "run").exists()


def test_teachers_of_another_corpus_are_refused(tiny, tmp_path):
    validation = open_cache(tiny / "cache").split("validation")
    write_teacher(tmp_path / "teacher", validation, np.zeros((16, 8), np.float32))
    with pytest.raises(UserError, match=str(tmp_path / "teacher")):
        settings = [
            "loss.name=distillation",
            f"loss.teachers=[{tmp_path}/teacher]",
            f"train.output={tmp_path}/run",
        ]
        loop.train(load_config(tiny / "tiny.yaml", settings))


def test_a_run_is_not_resumed_with_other_teachers(tiny, split, teachers, tmp_path):
    for name in ("scores.npy", "scores.json"):
        (tmp_path / "teacher").mkdir(exist_ok=True)
        shutil.copy(teachers[0] / name, tmp_path / "teacher")
    settings = [
        "loss.name=distillation",
        f"loss.teachers=[{tmp_path}/teacher]",
        f"train.output={tmp_path}/run",
        "evaluation.num_pictures=0",
    ]
    run = [tiny / "tiny.yaml", settings]

    def interrupted(*_):
        raise Interrupted(15)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "validate", interrupted)
        loop.train(load_config(*run))
    scores = np.array(np.load(tmp_path / "teacher" / "scores.npy"))
    write_teacher(tmp_path / "teacher", split, scores + np.float32(1e-3))
    with pytest.raises(UserError, match="--resume with other teachers"):
        loop.train(load_config(*run), resume=True)
    write_teacher(tmp_path / "teacher", split, scores)
    loop.train(load_config(*run), resume=True)
    assert (tmp_path / "run" / "metrics.json").exists()


def test_several_corpora_have_no_teachers(tiny, teachers, tmp_path):
    other = write_cache(tmp_path / "other", {"development": 4})
    settings = [
        "loss.name=distillation",
        f"loss.teachers=[{teachers[0]}]",
        f"train.caches=[{tiny}/cache, {other}]",
        f"train.output={tmp_path}/run",
    ]
    with pytest.raises(UserError, match="loss.name=distillation.*train.caches"):
        loop.train(load_config(tiny / "tiny.yaml", settings))


def test_a_learnt_temperature_that_crossed_zero_counts_by_its_size(tiny, pairs):
    config = load_config(tiny / "tiny.yaml", ["loss.learnable_temperature=true"])
    model, objective, scores = (
        build_model(config),
        Objective(config.loss, pairs, CPU),
        torch.rand(3, 3),
    )
    values = []
    for temperature in (0.05, -0.05, 0.2):
        model.temperature.data.fill_(temperature)
        values.append(objective(model, scores, torch.arange(3), torch.arange(3)).item())
    assert values[0] == values[1] != values[2]


def test_a_copy_of_a_teacher_is_refused(pairs, teachers, tmp_path):
    shutil.copytree(teachers[0], tmp_path / "copy")
    with pytest.raises(UserError, match="loss.teachers: .*copy"):
        TeacherScores([str(teachers[0]), str(teachers[1]), str(tmp_path / "copy")], pairs)


def test_a_teacher_may_hear_another_sample_rate(tiny, teachers, tmp_path):
    """Clips and captions of one name, in a cache of another rate and of other lengths in
    samples.
    """
    other = open_cache(
        write_cache(tmp_path / "other", {"development": 12}, seed=3, sample_rate=8_000)
    ).split("development")
    assert (
        other.num_samples.tolist()
        != open_cache(tiny / "cache").split("development").num_samples.tolist()
    )
    TeacherScores([str(teachers[0])], PairDataset(other, 16_000, seed=0))


def test_mixed_clips_have_no_targets(tiny, teachers, tmp_path):
    settings = [
        "loss.name=distillation",
        f"loss.teachers=[{teachers[0]}]",
        "augmentation.mix_probability=0.5",
        f"train.output={tmp_path}/run",
    ]
    with pytest.raises(UserError, match="loss.name=distillation.*augmentation.mix_probability"):
        loop.train(load_config(tiny / "tiny.yaml", settings))


# --- listnet ---


def test_caption_similarity_is_that_of_the_sentence_encoder(tiny, pairs, sentence_encoder):
    similarity = CaptionSimilarity(str(sentence_encoder), pairs.captions, CPU)
    encoder = TextEncoder(text_architecture(str(sentence_encoder), dropout=0.0), 32).eval()
    encoder.load_pretrained(str(sentence_encoder))
    tokenizer = load_tokenizer(sentence_encoder)
    numbers = torch.tensor([2, 2, 11])
    # capitals and full stops are kept
    tokens = [tokenizer(pairs.captions[index], return_tensors="pt") for index in numbers]
    with torch.no_grad():
        vectors = torch.cat([encoder.model(**each).last_hidden_state[:, 0] for each in tokens])
    assert len(tokens[0]["input_ids"][0]) > len(
        tokenizer(normalise_caption(pairs.captions[2]))["input_ids"]
    )
    expected = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    assert (similarity.block(numbers) - expected).abs().max() < 1e-5 and expected[0, 2] < 0.999
    objective = Objective(
        load_config(
            tiny / "tiny.yaml", ["loss.name=listnet", f"loss.sentence_encoder={sentence_encoder}"]
        ).loss,
        pairs,
        CPU,
    )
    scores = torch.rand(3, 3)
    found = objective(
        build_model(load_config(tiny / "tiny.yaml")), scores, torch.tensor([1, 1, 5]), numbers
    )
    assert found.item() == pytest.approx(
        listnet(scores, torch.eye(3, dtype=torch.bool), 0.05, expected).item(), rel=1e-5
    )


def test_an_absent_sentence_encoder_is_named(tiny, tmp_path):
    with pytest.raises(UserError, match="no/such/encoder"):
        settings = [
            "loss.name=listnet",
            "loss.sentence_encoder=no/such/encoder",
            f"train.output={tmp_path}/run",
        ]
        loop.train(load_config(tiny / "tiny.yaml", settings))


def test_the_error_of_a_sentence_encoder_names_its_own_setting(tiny, tmp_path):
    with pytest.raises(UserError) as error:
        CaptionSimilarity("nobody/no-such-encoder", ["A caption."], CPU)
    assert str(error.value).startswith(
        "loss.sentence_encoder: "
    ) and "set loss.sentence_encoder=weights/no-such-encoder" in str(error.value)
    assert "text_encoder.name" not in str(error.value)


def test_a_sentence_encoder_with_few_positions_reads_as_much_as_it_can(
    tiny, tmp_path, sentence_encoder
):
    """tiny.yaml's own has positions for 38 tokens."""
    folder = tmp_path / "short"
    TextEncoder(
        text_architecture(str(tiny / "text_encoder"), dropout=0.1), 32
    ).model.save_pretrained(folder)
    load_tokenizer(tiny / "text_encoder").save_pretrained(folder)
    assert CaptionSimilarity(str(folder), ["tone " * 100, "note"], CPU).embeddings.isfinite().all()


def write_teacher(folder: Path, split, scores: np.ndarray) -> None:
    write_scores(
        folder,
        [(torch.arange(len(split)), torch.from_numpy(scores))],
        split,
        SCORING_RECORD,
    )
    assert json.loads((folder / "scores.json").read_text())[
        "captions_fingerprint"
    ] == captions_fingerprint(split)


def loss_settings(tiny: Path, *overrides: str):
    return load_config(tiny / "tiny.yaml", ["loss.name=distillation", *overrides]).loss
