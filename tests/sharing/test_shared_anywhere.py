"""Export, convert, card and push with pretrained models, in a folder or by hub name."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.data import open_cache
from retrieval.evaluation.score_matrix import captions_of, similarity_matrix
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import load_pretrained
from retrieval.sharing import command as sharing
from retrieval.sharing.export import command as export
from retrieval.sharing.export.checks import weights_sha256
from tests.conftest import digests, mistake, write_text_encoder
from tests.hub_stub import Hub, hub_of
from tests.models.pretrained.test_salsa import (
    ATST,
    TAP,
    foreign_names,
    scores_of,
    small_model,
    write_checkpoint,
)
from tests.pretrained_models import make


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for family in ("clap", "pe_audio"):
        make(family, root / family)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def hub(folders, tmp_path, monkeypatch) -> Hub:
    with hub_of(folders, tmp_path / "hub", monkeypatch) as running:
        yield running


def test_vectors_of_a_hub_model_compare_as_the_file_says(hub, tiny, tmp_path):
    path = tmp_path / "vectors.parquet"
    arguments = ["--checkpoint", "some/pe_audio", "--parquet", str(path), "--quiet"]
    assert export.main([*arguments, "--cache", str(tiny / "cache")]) == 0
    metadata = pyarrow.parquet.read_schema(path).metadata
    assert metadata[b"similarity"] == b"dot"
    assert metadata[b"checkpoint"].decode() == f"some/pe_audio@{hub.sha('some/pe_audio')}"
    weights = hub.repos["some/pe_audio"]["model.safetensors"]
    assert metadata[b"weights_sha256"].decode() == hashlib.sha256(weights).hexdigest()
    rows = pandas.read_parquet(path)
    clips, texts = (np.stack(rows[rows.kind == kind].vector) for kind in ("audio", "caption"))
    split = open_cache(tiny / "cache").split("evaluation")
    model = load_pretrained("some/pe_audio")
    model.hear_at(split.sample_rate)
    expected = similarity_matrix(model, captions_of(split)[0], split)
    np.testing.assert_allclose(texts @ clips.T, expected, atol=1e-4)
    lengths = np.linalg.norm(texts, axis=1)[:, None] * np.linalg.norm(clips, axis=1)
    assert np.abs(texts @ clips.T / lengths - expected.numpy()).max() > 0.05  # no cosines


def test_a_digest_of_all_the_weights(folders, tmp_path):
    one = weights_sha256(folders["clap"])
    shards = tmp_path / "shards"
    make("clap")[0].save_pretrained(shards, max_shard_size="10KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    first = weights_sha256(shards)
    with open(sorted(shards.glob("*.safetensors"))[-1], "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert len({one, first, weights_sha256(shards)}) == 3
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    assert weights_sha256(tmp_path / "a.ckpt") == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("family", ["clap", "pe_audio"])
def test_a_converted_model_is_the_same_and_names_its_origin(hub, family, tmp_path, capsys):
    own = tmp_path / "own"
    arguments = ["--checkpoint", f"some/{family}", "--output", str(own), "--license", "apache-2.0"]
    assert sharing.main(["convert", *arguments]) == 0
    expected, model = load_pretrained(f"some/{family}").state_dict(), load_pretrained(own)
    assert all(torch.equal(own, expected[name]) for name, own in model.state_dict().items())
    assert model.record.converted_from == f"some/{family}"
    card = (own / "README.md").read_text()
    kind = {"clap": "clap_audio_model", "pe_audio": "pe_audio_encoder"}[family]
    assert f"huggingface ({kind})" in card and f"Converted from `some/{family}`" in card
    assert "license: apache-2.0" in card and "The training started from" not in card
    assert "exists" in mistake(sharing.main, "convert", *arguments)
    # the card is now the user's to write
    assert sharing.main(["card", "--checkpoint", str(own), "--license", "mit"]) == 0
    card = (own / "README.md").read_text()
    assert "license: mit" in card and f"Converted from `some/{family}`" in card
    # training makes another model of it
    assert model.train().record.converted_from is None


def test_a_ckpt_is_converted(tmp_path):
    tokenizer = write_text_encoder(tmp_path / "tokenizer")
    model = small_model(ATST, TAP, tokenizer)
    ckpt = write_checkpoint(tmp_path / "model.ckpt", foreign_names(model))
    made = ["--output", str(tmp_path / "own"), "--text-encoder", str(tokenizer)]
    assert sharing.main(["convert", "--checkpoint", str(ckpt), *made]) == 0
    own = DualEncoder.from_pretrained(tmp_path / "own")
    assert torch.equal(scores_of(own), scores_of(model))
    assert "Converted from `.../model.ckpt`" in (tmp_path / "own" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["name", "folder"])
@pytest.mark.parametrize("command", ["card", "push"])
def test_a_model_of_others_gets_no_card_and_is_not_pushed(hub, folders, command, kind):
    checkpoint = "some/clap" if kind == "name" else str(folders["clap"])
    before = digests(folders["clap"])
    more = ["--repo", "me/mine"] if command == "push" else []
    said = mistake(sharing.main, command, "--checkpoint", checkpoint, *more)
    assert checkpoint in said and "sharing convert" in said and said.count("\n") == 1
    assert digests(folders["clap"]) == before and hub.requests == []


def test_a_conversion_that_fails_leaves_nothing(folders, tmp_path, monkeypatch):
    copy = shutil.copytree(folders["clap"], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(UserError, match="is a bert"):
        sharing.convert(copy, tmp_path / "own")
    assert not (tmp_path / "own").exists()

    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DualEncoder, "save_pretrained", failing)
    with pytest.raises(UserError, match="No space|full"):
        sharing.convert(folders["clap"], tmp_path / "own")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
