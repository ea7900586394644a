"""evaluate.py with CLAP and PE-Audio as checkpoints, on a cache of another sample rate."""

import json
from pathlib import Path

import pytest
import torch
import torchaudio

from retrieval.base.errors import UserError
from retrieval.data import open_cache
from retrieval.evaluation import similarity_matrix
from retrieval.evaluation.result import retrieval_metrics
from retrieval.evaluation.score_matrix import captions_of
from retrieval.models.pretrained import load_pretrained
from tests.conftest import write_cache
from tests.evaluation.evaluate_command import evaluate
from tests.pretrained_models import RATE, make


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pretrained")
    write_cache(root / "cache", {"evaluation": 6}, sample_rate=2 * RATE)
    for family in ("clap", "pe_audio"):
        make(family, root / family)
    return root


@pytest.mark.parametrize("family", ["clap", "pe_audio"])
def test_a_cache_of_another_rate_is_scored_by_the_resampled_sounds(inputs, tmp_path, family):
    arguments = ["--checkpoint", inputs / family, "--cache", inputs / "cache"]
    assert evaluate(*arguments, "--output", tmp_path, "--audio-batch-size", 4) == 0
    split = open_cache(inputs / "cache").split("evaluation")
    captions, clips = captions_of(split)
    model = load_pretrained(inputs / family)
    columns = []
    with torch.no_grad():
        text = model.encode_text(captions)
        for clip in range(len(split)):
            waveform = torch.from_numpy(split.read(clip))[None]
            waveform = torchaudio.functional.resample(waveform, 2 * RATE, RATE)
            frames, mask = model.encode_audio(waveform, torch.tensor([waveform.shape[1]]))
            columns.append(model.score(text, frames, mask))
    expected = retrieval_metrics(torch.cat(columns, dim=1), [[clip] for clip in clips])
    found = json.loads((tmp_path / "metrics.json").read_text())
    for name, value in expected.items():
        assert found["text_to_audio"][name] == pytest.approx(value, abs=1e-9)
    assert {path.name for path in (inputs / family).iterdir()} == {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_equal_captions_are_tied_whatever_is_asked_beside_them(inputs):
    """In batches of other captions an encoder rounds otherwise."""
    split = open_cache(inputs / "cache").split("evaluation")
    model = load_pretrained(inputs / "clap")
    model.hear_at(split.sample_rate)
    captions = ["a dog barks", "rain falls", "a dog barks", "then the wind blows and a cat", "a"]
    sizes = {"audio_batch_size": 4, "text_batch_size": 2}
    scores = similarity_matrix(model, captions, split, **sizes)
    assert torch.equal(scores[0], scores[2]) and not torch.equal(scores[0], scores[1])
    alone = torch.cat([similarity_matrix(model, [own], split, **sizes) for own in captions])
    torch.testing.assert_close(scores, alone, atol=1e-6, rtol=0)


def test_cosines_and_dot_products_have_no_mean(inputs, tmp_path):
    checkpoints = ["--checkpoint", inputs / "clap", "--checkpoint", inputs / "pe_audio"]
    with pytest.raises(UserError, match="dot products and others by cosines"):
        evaluate(*checkpoints, "--cache", inputs / "cache", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
