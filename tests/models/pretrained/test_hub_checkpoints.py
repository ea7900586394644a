"""Checkpoints by name, from a stand-in of the Hugging Face hub, and again without it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from retrieval.base.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pretrained import exact_name, load_pretrained, local_checkpoint
from tests.hub_stub import Hub, go_offline, hub_of, running_hub
from tests.pretrained_models import RATE, make

CAPTIONS = ["A dog barks loudly", "rain falls"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """clap, pickled (its weights in a .bin only), own (a model folder of this project), bert."""
    root = tmp_path_factory.mktemp("models")
    model, _ = make("clap", root / "clap")
    shutil.copytree(root / "clap", root / "pickled")
    (root / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), root / "pickled" / "pytorch_model.bin")
    load_pretrained(root / "clap").save_pretrained(root / "own")
    BertModel(
        BertConfig(hidden_size=8, vocab_size=9, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(root / "bert")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def hub(folders, tmp_path, monkeypatch) -> Hub:
    with hub_of(folders, tmp_path / "hub", monkeypatch) as running:
        yield running


@torch.no_grad()
def scores(model: DualEncoder) -> torch.Tensor:
    waveform = torch.randn(2, 3 * RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    frames, mask = model.encode_audio(waveform, torch.tensor([3 * RATE, 9_000]))
    return model.score(model.encode_text(CAPTIONS), frames, mask)


def refusal(checkpoint: str) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(checkpoint)
    message = str(caught.value)
    assert "\n" not in message and checkpoint in message, message
    return message


def downloaded(hub: Hub) -> set[str]:
    """Names of the files whose content was asked for."""
    gets = [
        request for request in hub.requests if request.startswith("GET") and "/resolve/" in request
    ]
    return {request.rpartition("/")[2] for request in gets}


@pytest.mark.parametrize("name", ["clap", "own", "pickled"])
def test_a_name_loads_and_loads_again_without_the_hub(hub, folders, name, monkeypatch):
    expected = scores(load_pretrained(folders[name]))
    assert torch.equal(scores(load_pretrained(f"some/{name}")), expected)
    num_requests = len(hub.requests)
    go_offline(monkeypatch)
    assert torch.equal(scores(load_pretrained(f"some/{name}")), expected)
    assert len(hub.requests) == num_requests
    assert "out of reach" in refusal("some/bert")  # the control: never downloaded


def test_a_hub_that_is_down(hub, folders, monkeypatch):
    local_checkpoint("some/clap")
    with running_hub() as other:
        address = other.address  # of a server that has ended
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    from retrieval.models.hub import hub_answers

    hub_answers.cache_clear()
    assert torch.equal(
        scores(load_pretrained("some/clap")), scores(load_pretrained(folders["clap"]))
    )


def test_pickles_are_left_where_safetensors_exist(hub, folders, tmp_path):
    both = shutil.copytree(folders["clap"], tmp_path / "both")
    (both / "pytorch_model.bin").write_bytes(b"not weights")
    (both / "model.onnx").write_bytes(b"a graph")
    hub.add("some/both", both)
    load_pretrained("some/both")
    assert "model.safetensors" in downloaded(hub)
    assert not {"pytorch_model.bin", "model.onnx"} & downloaded(hub)


def test_a_pickle_runs_no_code(hub, folders, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / "ran",)

    evil = shutil.copytree(folders["pickled"], tmp_path / "evil")
    torch.save({"weight": Trap()}, evil / "pytorch_model.bin")
    hub.add("some/evil", evil)
    assert "does not load" in refusal("some/evil")
    assert not (tmp_path / "ran").exists()
    torch.load(evil / "pytorch_model.bin", weights_only=False)  # the control
    assert (tmp_path / "ran").exists()


def test_revisions(hub, folders, tmp_path):
    changed = shutil.copytree(folders["clap"], tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"note": "v1"}))
    hub.add("some/clap", changed, revision="v1")
    assert (
        json.loads((local_checkpoint("some/clap@v1") / "config.json").read_text())["note"] == "v1"
    )
    assert "note" not in json.loads((local_checkpoint("some/clap") / "config.json").read_text())
    commit = hub.sha("some/clap", "v1")
    assert exact_name("some/clap@v1") == f"some/clap@{commit}"
    num_requests = len(hub.requests)
    assert local_checkpoint(f"some/clap@{commit}") == local_checkpoint("some/clap@v1")
    # of the two names above only the tag was asked for
    assert all(commit not in request or "v1" in request for request in hub.requests[num_requests:])
    assert "has no revision v9" in refusal("some/clap@v9")


def test_what_the_hub_refuses(hub):
    assert "no such model" in refusal("some/nothing")
    hub.gated.add("some/own")
    assert "gated" in refusal("some/own")
    assert "is a bert" in refusal("some/bert")
    assert str(Path.home()) not in refusal("some/bert")


def test_a_download_that_breaks_off_is_no_model(hub, folders, monkeypatch):
    hub.broken.add("model.safetensors")
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    refusal("some/clap")
    go_offline(monkeypatch)
    assert "broke off" in refusal("some/clap")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    from retrieval.models.hub import hub_answers

    hub_answers.cache_clear()
    hub.broken.clear()
    assert torch.equal(
        scores(load_pretrained("some/clap")), scores(load_pretrained(folders["clap"]))
    )


def test_the_record_names_the_origin(hub, folders):
    assert load_pretrained("some/clap").record.converted_from == "some/clap"
    assert load_pretrained(folders["clap"]).record.converted_from == ".../clap"
    assert load_pretrained("some/own").record.converted_from == ".../clap"
