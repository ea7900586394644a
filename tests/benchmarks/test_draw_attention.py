"""The README's picture, drawn from a tiny model."""

import pytest
import torch

from benchmarks import draw_attention
from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.models.build import build_model
from tests.benchmarks.test_compare_runs import write_scenes


def paths(tiny, folder) -> list[str]:
    """Options for the model in `folder`, the tiny cache and the picture folder/a.png."""
    model, picture, cache = folder / "model", folder / "a.png", tiny / "cache"
    return ["--checkpoint", str(model), "--cache", str(cache), "--output", str(picture)]


def test_a_picture_is_written_and_impossible_clips_are_refused(tiny, tmp_path):
    build_model(load_config(tiny / "tiny.yaml")).save_pretrained(tmp_path / "model")
    arguments = paths(tiny, tmp_path)
    assert draw_attention.main(arguments) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="clips 0 to 7"):
        draw_attention.main([*arguments, "--clip", "8"])
    with pytest.raises(UserError, match="captions 0 to 1"):
        draw_attention.main([*arguments, "--captions", "2"])


def test_the_weight_within_an_event_against_an_equal_share(tiny, tmp_path, capsys):
    config = load_config(tiny / "tiny.yaml")
    model = build_model(config)
    split = open_cache(config.data.cache).split("evaluation")
    seconds = split.num_samples[0] / split.sample_rate
    spans = {("0.wav", split.captions[0][0]): (0.0, seconds / 2)}

    def attention(text, frames, mask):  # all weight on the first frame
        weights = torch.zeros(len(text), 1, mask.shape[1])
        weights[:, :, 0] = 1.0
        return weights

    model.eval().attention = attention
    [(ratio, clip, caption)] = draw_attention.focus(model, split, spans)
    assert (clip, caption) == (0, 0) and ratio == pytest.approx(2.0, rel=0.15)
    spans = {("0.wav", split.captions[0][0]): (seconds / 2, seconds)}
    assert draw_attention.focus(model, split, spans)[0][0] == 0.0

    build_model(config).save_pretrained(tmp_path / "model")
    arguments = paths(tiny, tmp_path)
    assert (
        draw_attention.main([*arguments, "--scenes", str(write_scenes(tmp_path / "scenes.json"))])
        == 0
    )
    assert "over 1 captions" in capsys.readouterr().out


def test_mean_pooling_has_no_focus(tiny, tmp_path):
    build_model(load_config(tiny / "tiny.yaml", ["pooling.name=mean"])).save_pretrained(
        tmp_path / "model"
    )
    arguments = paths(tiny, tmp_path)
    with pytest.raises(UserError, match="give a TAP model"):
        draw_attention.main([*arguments, "--scenes", str(write_scenes(tmp_path / "scenes.json"))])


def test_nothing_is_drawn_for_the_scenes_of_another_corpus_or_without_a_suffix(tiny, tmp_path):
    build_model(load_config(tiny / "tiny.yaml")).save_pretrained(tmp_path / "model")
    scenes = write_scenes(tmp_path / "scenes.json")
    scenes.write_text(scenes.read_text().replace("0.wav", "other.wav"))
    arguments = [
        "--checkpoint",
        str(tmp_path / "model"),
        "--cache",
        str(tiny / "cache"),
        "--scenes",
        str(scenes),
    ]
    with pytest.raises(UserError, match="none of its captions is in split evaluation"):
        draw_attention.main([*arguments, "--output", str(tmp_path / "a.png")])
    with pytest.raises(UserError, match="give a file with the suffix"):
        draw_attention.main([*arguments, "--output", str(tmp_path / "a")])
    with pytest.raises(UserError, match="there is no folder .*/absent; make it"):
        draw_attention.main([*arguments, "--output", str(tmp_path / "absent" / "a.png")])
    assert not list(tmp_path.glob("a*"))
