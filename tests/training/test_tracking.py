"""Event files read back: scalars, pictures, sound, hyperparameters, resumption."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from retrieval.config import load_config
from retrieval.config.text import flatten
from retrieval.data import open_cache
from retrieval.evaluation.result import evaluate_split
from retrieval.models.build import build_model
from retrieval.training.tracking import (
    MAX_CLIPS_DRAWN,
    Tracker,
    attention_figure,
    rank_figure,
    score_figure,
)

TENSORBOARD = ("tensorboard",)
CAPTION = "costs $5 and not $6"  # dollars would be mathematics to matplotlib


def events(folder):
    read = EventAccumulator(str(folder), size_guidance={"images": 0, "audio": 0, "scalars": 0})
    read.Reload()
    return read


@pytest.fixture(scope="module")
def parts(tiny):
    config = load_config(tiny / "tiny.yaml")
    torch.manual_seed(0)
    return config, build_model(config), open_cache(tiny / "cache").split("validation")


def test_a_run_is_readable(parts, tmp_path):
    config, model, split = parts
    settings = flatten(config.model_dump())
    tracker = Tracker(
        tmp_path, resume_step=None, enabled=True, names=TENSORBOARD, settings=settings
    )
    tracker.scalars(3, {"train/loss": 1.5, "lr/text_encoder": 2e-5})
    for step in (3, 6):
        tracker.validation(step, evaluate_split(model, split))
        tracker.attention_examples(step, model, split, num_pictures=2)
    assert model.training
    tracker.final({"best_epoch": 2, "best": {"text_to_audio": {"mAP@10": 0.5}}})
    tracker.close()

    assert [path.is_file() for path in tmp_path.iterdir()] == [True]  # no second run folder
    read = events(tmp_path)
    assert read.Scalars("train/loss")[0].value == 1.5 and read.Scalars("train/loss")[0].step == 3
    for direction in ("text_to_audio", "audio_to_text"):
        for name in ("mAP@10", "R@1", "R@5", "R@10"):
            assert [point.step for point in read.Scalars(f"validation/{direction}/{name}")] == [
                3,
                6,
            ]
    examples = {f"validation_examples/{split.file_names[clip]}" for clip in (0, 4)}
    assert set(read.Tags()["images"]) == {"validation/scores", "validation/ranks"} | examples
    assert set(read.Tags()["audio"]) == examples
    for name in examples:
        # the sound does not change
        assert len(read.Images(name)) == 2 and len(read.Audio(name)) == 1
    picture = np.asarray(
        Image.open(io.BytesIO(read.Images("validation/ranks")[0].encoded_image_string))
    )
    assert picture.ndim == 3 and picture.std() > 5
    sound = read.Audio("validation_examples/0.wav")[0]
    assert sound.sample_rate == model.sample_rate and sound.length_frames == min(
        split.num_samples[0], 2 * model.sample_rate
    )
    assert read.Scalars("final/best/text_to_audio/mAP@10")[0].value == 0.5
    start = plugin_data_pb2.HParamsPluginData.FromString(
        read.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info.hparams
    assert (
        start["pooling.name"].string_value == "tap"
        and start["optimizer.lr.pooling"].number_value == 2e-3
    )
    assert len(start) == len(flatten(config.model_dump()))


def test_resume_hides_what_was_written_from_there_on(tmp_path):
    for resume_step, steps, value in ((None, range(1, 8), 0.0), (5, range(5, 9), 1.0)):
        tracker = Tracker(
            tmp_path, resume_step=resume_step, enabled=True, names=TENSORBOARD, settings={}
        )
        for step in steps:
            tracker.scalars(step, {"train/loss": value})
        tracker.close()
    points = [(point.step, point.value) for point in events(tmp_path).Scalars("train/loss")]
    assert points == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1), (7, 1), (8, 1)]


def test_other_processes_write_nothing(parts, tmp_path):
    _, model, split = parts
    tracker = Tracker(tmp_path, resume_step=None, enabled=False, names=TENSORBOARD, settings={})
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.validation(1, None)
    tracker.attention_examples(1, model, split, 2)
    tracker.final({})
    tracker.close()
    assert not list(tmp_path.iterdir())


def test_no_pictures_asked_for(parts, tmp_path):
    _, model, split = parts
    tracker = Tracker(tmp_path, resume_step=None, enabled=True, names=TENSORBOARD, settings={})
    tracker.attention_examples(1, model, split, num_pictures=0)
    tracker.close()
    assert not events(tmp_path).Tags()["images"]


def test_attention_figure_shows_the_weights_over_the_clip(parts):
    _, model, split = parts
    clip = int(np.argmin(split.num_samples))
    waveform = torch.from_numpy(split.read(clip))
    seconds = len(waveform) / model.sample_rate
    figure = attention_figure(model, waveform, CAPTION)
    mel, attention = figure.axes
    assert mel.get_title(loc="left") == CAPTION and not attention.get_title(loc="left")
    assert mel.images[0].get_extent()[:2] == pytest.approx([0, seconds])
    values, edges, _ = attention.patches[0].get_data()
    assert values.mean() == pytest.approx(1, abs=1e-5) and edges[-1] == pytest.approx(seconds)
    with torch.no_grad():
        model.eval()
        frames, mask = model.encode_audio(waveform[None], torch.tensor([len(waveform)]))
        weights = model.attention(model.encode_text([CAPTION]), frames, mask)[0, 0][mask[0]].numpy()
        model.train()
    assert values == pytest.approx(weights * len(weights), abs=1e-6)

    two = attention_figure(model, waveform, "a low tone", "a high tone").axes
    assert [axis.get_title(loc="left") for axis in two] == ["", "a low tone", "a high tone"]
    # silence, longer than clip_seconds
    long = attention_figure(model, torch.zeros(5 * model.sample_rate), CAPTION).axes
    assert long[0].images[0].get_extent()[1] == pytest.approx(model.clip_seconds)


def test_mean_pooling_has_no_attention_curve(tiny):
    model = build_model(load_config(tiny / "tiny.yaml", ["pooling.name=mean"]))
    figure = attention_figure(model, torch.rand(20_000) - 0.5, CAPTION)
    assert len(figure.axes) == 1 and figure.axes[0].get_title(loc="left") == CAPTION


def test_score_figure_keeps_the_right_pairs_on_the_diagonal():
    num_clips = 3 * MAX_CLIPS_DRAWN + 7
    clips = np.random.default_rng(0).permutation(np.repeat(np.arange(num_clips), 2))
    scores = (clips[:, None] == np.arange(num_clips)).astype(np.float32)
    drawn = score_figure(scores, clips.tolist()).axes[0].images[0].get_array()
    assert drawn.shape == (2 * MAX_CLIPS_DRAWN, MAX_CLIPS_DRAWN)
    assert np.array_equal(drawn.argmax(axis=1), np.repeat(np.arange(MAX_CLIPS_DRAWN), 2))


def test_rank_figure_counts_every_query():
    random = np.random.default_rng(0)
    ranks = {
        "text_to_audio": [random.integers(1, 90, size=1) for _ in range(600)],
        "audio_to_text": [np.array([1, 700]), np.array([2, 3])],
    }
    bars = rank_figure(ranks).axes[0].containers
    for container, queries in zip(bars, ranks.values()):
        assert sum(bar.get_height() for bar in container) == pytest.approx(1)
        assert container[0].get_height() == pytest.approx(
            np.mean([query[0] == 1 for query in queries])
        )


@pytest.mark.parametrize("num_samples", [1, 300])
def test_a_clip_shorter_than_a_spectrogram_is_drawn(parts, tmp_path, monkeypatch, num_samples):
    _, model, split = parts
    monkeypatch.setattr(
        split, "read", lambda clip, start=0, stop=None: np.full(num_samples, 0.1, dtype=np.float32)
    )
    tracker = Tracker(tmp_path, resume_step=None, enabled=True, names=TENSORBOARD, settings={})
    tracker.attention_examples(1, model, split, 1)
    tracker.close()
    assert len(events(tmp_path).Tags()["images"]) == 1
