"""Model cards; a model that goes to a stand-in of the Hugging Face hub and comes back the same."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from huggingface_hub import ModelCard

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.models import hub
from retrieval.models.build import build_model
from retrieval.models.card import model_card
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.record import SplitRecord, TrainingRecord, read_record, without_folders
from retrieval.sharing import command as sharing
from retrieval.training.loop import train
from retrieval.training.splits import open_splits
from tests.conftest import PATIENCE, ROOT, SAMPLE_RATE, write_cache
from tests.hub_stub import READER, WRITER, Hub, running_hub

CC0, CC_BY = (
    "http://creativecommons.org/publicdomain/zero/1.0/",
    "http://creativecommons.org/licenses/by/3.0/",
)


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory) -> Path:
    """A run of one epoch on a cache that knows the licence of each clip."""
    root = tmp_path_factory.mktemp("sharing")
    cache = write_cache(
        root / "cache",
        {"development": 12, "validation": 4, "evaluation": 4},
        command=f"build.py --root {root} --sample-rate 16000",
    )
    table = datasets.load_from_disk(str(cache / "development"))
    licensed = table.add_column("license", [CC_BY] * 9 + [CC0] * 2 + [""])
    licensed.save_to_disk(str(root / "licensed"))
    shutil.rmtree(cache / "development")
    (root / "licensed").rename(cache / "development")
    train(
        load_config(
            tiny / "tiny.yaml",
            [f"data.cache={cache}", f"train.output={root / 'run'}", "train.epochs=1"],
        )
    )
    return root / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run" / "best"


# --- the card ---


def test_training_writes_a_card_with_data_results_and_settings(run: Path):
    for name in ("best", "last"):
        card = ModelCard.load(run / name / "README.md")
        text, record = card.text, read_record(run / name)
        final = json.loads((run / "metrics.json").read_text())[name]
        assert record.evaluation.metrics == final and record.validation.epoch == 1
        row = final["text_to_audio"]
        assert (
            "| evaluation | text to audio |"
            f" {' | '.join(f'{100 * value:.2f}' for value in row.values())} |" in text
        )
        assert "| validation | audio to text |" in text
        assert (
            "| development | test | 12 | 24 | 0.0 |" in text
            and record.data[0].fingerprint[:16] in text
        )
        assert f"| {CC_BY} | 9 |\n| {CC0} | 2 |\n| not given | 1 |" in text
        assert (
            "audio encoder `atst_frame`, text encoder `roberta`, pooling `tap`" in text
            and f"mono audio at {SAMPLE_RATE} Hz" in text
        )
        assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["train"]["epochs"] == 1
        assert "{" not in text.split("## Settings")[0].replace("dict", "")


def test_the_header_is_what_the_hub_reads(run: Path):
    card = ModelCard.load(run / "best" / "README.md")
    assert card.data.license == "unknown" and "Of the model: **unknown**" in card.text
    assert "text-to-audio-retrieval" in card.data.tags
    found = {
        (result.dataset_split, result.metric_type): result.metric_value
        for result in card.data.eval_results
    }
    final = json.loads((run / "metrics.json").read_text())["best"]["text_to_audio"]
    assert found["evaluation", "map_at_10"] == round(100 * final["mAP@10"], 2)
    metrics = ("map_at_10", "recall_at_1", "recall_at_5", "recall_at_10")
    assert set(found) == {
        (split, metric) for split in ("validation", "evaluation") for metric in metrics
    }
    assert {result.dataset_name for result in card.data.eval_results} == {"test (4 clips)"}


def test_no_folder_of_the_maker_is_passed_on(run: Path):
    """The settings and the cache's command name folders by absolute paths."""
    for name in ("README.md", "about.json"):
        assert str(run.parent) not in (run / "best" / name).read_text()
    assert "build.py --root .../" in (run / "best" / "README.md").read_text()
    assert str(run.parent) in (run / "config.yaml").read_text()  # negative control
    assert "_name_or_path" not in (run / "best" / "config.json").read_text()


def test_a_loaded_model_keeps_its_card_until_it_is_trained_on(run: Path, tmp_path: Path):
    model = DualEncoder.from_pretrained(run / "best")
    model.save_pretrained(tmp_path / "again")
    for name in ("README.md", "about.json"):
        assert (tmp_path / "again" / name).read_bytes() == (run / "best" / name).read_bytes()
    model.train()
    model.eval()
    model.save_pretrained(tmp_path / "trained")
    assert not (tmp_path / "trained" / "about.json").exists()
    assert "Not evaluated." in (tmp_path / "trained" / "README.md").read_text()


def test_what_is_not_known_is_called_unknown(run: Path):
    architecture = json.loads((run / "best" / "config.json").read_text())
    text = model_card(architecture, TrainingRecord()).text
    assert (
        "Not evaluated." in text
        and "## Training data\n\nUnknown." in text
        and "Of the training data: unknown." in text
    )
    split = SplitRecord(
        split="development", corpus="c", num_clips=1, num_captions=1, fingerprint="f" * 64
    )
    text = model_card(architecture, TrainingRecord(data=[split])).text
    assert "Of the training data (c): the cache does not say." in text


def test_several_corpora_and_pretrained_parts_are_named(tiny: Path, tmp_path: Path):
    other = write_cache(tmp_path / "other", {"development": 2}, corpus="other")
    settings = [
        f"train.caches=[{tiny / 'cache'}, {other}]",
        "text_encoder.name=org/text",
        "text_encoder.pretrained=true",
    ]
    config = load_config(tiny / "tiny.yaml", settings)
    data = open_splits(config).records()
    splits = ["development", "development", "validation", "evaluation"]
    assert [split.split for split in data] == splits
    assert [split.corpus for split in data] == ["test", "other", "test", "test"]
    record = TrainingRecord(data=data, settings=config.model_dump(), git_commit="abc")
    architecture = {
        "audio_encoder": {"name": "a"},
        "text_encoder": {"model_type": "t"},
        "pooling": {"name": "p"},
    }
    text = model_card(architecture | {"sample_rate": 1, "clip_seconds": 1}, record).text
    assert (
        "started from `org/text`: their licences hold as well" in text and "(commit `abc`)" in text
    )


def test_a_licence_is_set_by_card(copy: Path):
    sharing.main(["card", "--checkpoint", str(copy), "--license", "cc-by-4.0"])
    card = ModelCard.load(copy / "README.md")
    assert card.data.license == "cc-by-4.0" and "Of the model: `cc-by-4.0`." in card.text
    assert "| evaluation | text to audio |" in card.text
    sharing.main(["card", "--checkpoint", str(copy)])
    assert ModelCard.load(copy / "README.md").data.license == "cc-by-4.0"  # kept


def test_a_card_that_was_edited_by_hand_is_kept(copy: Path):
    path = copy / "README.md"
    path.write_text(path.read_text() + "\nMy own words.\n")
    with pytest.raises(UserError, match="was edited by hand: edit `license`"):
        sharing.renew_card(copy, "mit")
    assert "My own words." in path.read_text()
    sharing.renew_card(copy, "mit", overwrite=True)
    assert "My own words." not in path.read_text()


def test_a_model_of_an_earlier_version_loads_and_gets_a_card(copy: Path, run: Path):
    (copy / "about.json").unlink()
    (copy / "README.md").write_text(
        "---\ntags:\n- audio\n---\n\n# Text-to-audio retrieval model\n\nValidation mAP@10 after"
        " epoch 1: 0.5.\n"
    )
    assert DualEncoder.from_pretrained(copy).record == TrainingRecord()
    sharing.renew_card(copy)
    text = (copy / "README.md").read_text()
    assert (
        "| development | test | 12 | 24 |" in text
        and "| evaluation | text to audio |" in text
        and "| validation | text to audio |" in text
    )
    shutil.rmtree(copy.parent / "else", ignore_errors=True)
    shutil.copytree(copy, copy.parents[1] / "alone")  # outside of a run
    (copy.parents[1] / "alone" / "about.json").unlink()
    sharing.renew_card(copy.parents[1] / "alone")
    assert "Not evaluated." in (copy.parents[1] / "alone" / "README.md").read_text()


def test_notes_in_place_of_a_card_are_kept(copy: Path):
    (copy / "about.json").unlink()
    (copy / "README.md").write_text("my notes")
    with pytest.raises(UserError, match="was edited by hand"):
        sharing.renew_card(copy)
    assert (copy / "README.md").read_text() == "my notes"


@pytest.mark.parametrize(
    "content",
    [
        "[1",
        "[]",
        '{"data": "x"}',
        '{"data": ["x"]}',
        '{"data": [{"split": "x"}]}',
        '{"validation": []}',
    ],
)
def test_a_damaged_about_file(copy: Path, content: str):
    (copy / "about.json").write_text(content)
    with pytest.raises(UserError, match="about.json cannot be read"):
        DualEncoder.from_pretrained(copy)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/srv/alice/clotho", ".../clotho"),
        ("--root=/srv/alice/clotho", "--root=.../clotho"),
        ("../../alice/w.ckpt", ".../w.ckpt"),
        ("~alice/w", ".../w"),
        ("data/clotho", "data/clotho"),
        ("--codec=flac", "--codec=flac"),
        ("roberta-large", "roberta-large"),
        ({"a": ["/x/b", 3]}, {"a": [".../b", 3]}),
    ],
)
def test_paths_that_tell_of_the_maker(value, shown):
    assert without_folders(value) == shown


# --- the hub ---


@pytest.fixture(scope="module")
def stub() -> Hub:
    with running_hub() as running:
        yield running


def on_hub(
    stub: Hub, home: Path, *command: str, token: str | None = WRITER
) -> subprocess.CompletedProcess:
    """HF_ENDPOINT is read when huggingface_hub is imported: a process of its own. Without xet,
    whose protocol the stand-in does not speak.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    environment |= {
        "HF_ENDPOINT": stub.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    } | ({"HF_TOKEN": token} if token else {})
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


SCORES = """
import sys, torch
import transformers
from retrieval.models.dual_encoder import DualEncoder

transformers.logging.set_verbosity_error()
CAPTIONS = ["A rising high tone.", "Someone plays a low, steady note.", "pulsing"]

def scores(model):
    waveform = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.inference_mode():
        encoded = model.encode_audio(waveform, torch.tensor([24_000, 9_000]))
        return model.score(model.encode_text(CAPTIONS), *encoded)

own, pushed = DualEncoder.from_pretrained(sys.argv[1]), DualEncoder.from_pretrained("me/barks")
assert torch.equal(scores(own), scores(pushed)), "the pushed model scores otherwise"
assert pushed.record == own.record and not pushed.training
pushed.push_to_hub("me/second", private=True)
second = DualEncoder.from_pretrained("me/second")
assert torch.equal(scores(own), scores(second)) and second.record == own.record
assert second.text_encoder.tokenizer.get_vocab() == own.text_encoder.tokenizer.get_vocab()
own.text_projection.bias.data += 1  # negative control
assert not torch.equal(scores(own), scores(second))
print("equal")
"""


def test_a_pushed_model_comes_back_with_the_same_scores(stub: Hub, run: Path, tmp_path: Path):
    (run / "best" / "results").mkdir(exist_ok=True)  # what evaluate.py leaves there stays here
    (run / "best" / "results" / "ranks.csv").touch()
    pushed = on_hub(
        stub,
        tmp_path,
        "-m",
        "retrieval.sharing",
        "push",
        "--checkpoint",
        str(run / "best"),
        "--repo",
        "me/barks",
    )
    assert pushed.returncode == 0 and pushed.stderr == "", pushed.stderr
    assert re.fullmatch(
        rf"uploaded: {run / 'best'} to {stub.address}/me/barks \(0\.\d MB\)\n", pushed.stdout
    )
    files = stub.repos["me/barks"]
    assert {path for path in files if not path.startswith("tokenizer/")} == {
        "README.md",
        "about.json",
        "config.json",
        "model.safetensors",
    }
    assert {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"} <= set(files)
    assert all(content == (run / "best" / path).read_bytes() for path, content in files.items())
    # the weights went the way of large files
    assert any(request.startswith("PUT /lfs/") for request in stub.requests)
    loaded = on_hub(stub, tmp_path, "-c", SCORES, str(run / "best"))
    assert (loaded.returncode, loaded.stdout) == (0, "equal\n"), loaded.stderr
    assert stub.visibility == {"me/barks": None, "me/second": "private"}
    assert stub.repos["me/second"]["README.md"] == files["README.md"]


ERRORS = """
import os, sys
from retrieval.sharing import command as sharing
from retrieval.base.errors import UserError

wrong_tokens = [(None, "me/x"), ("hf_wrong", "me/x"), ("hf_reader", "me/x")]
for token, repo in [*wrong_tokens, ("hf_writer", "no such/name"), ("hf_writer", "a/b/c")]:
    os.environ.pop("HF_TOKEN", None)
    os.environ |= {"HF_TOKEN": token} if token else {}
    try:
        sharing.main(["push", "--checkpoint", sys.argv[1], "--repo", repo])
    except UserError as error:
        print(error)
"""


def test_refusals_are_one_line_each(stub: Hub, run: Path, tmp_path: Path):
    before = dict(stub.repos)
    outcome = on_hub(stub, tmp_path, "-c", ERRORS, str(run / "best"), token=None)
    assert outcome.returncode == 0 and outcome.stderr == "", outcome.stderr
    without, wrong, reader, blank, slashes = outcome.stdout.splitlines()
    assert "token" in without and "HF_TOKEN" in without
    assert "refused me/x (status 401)" in wrong and "refused me/x (status 403)" in reader
    assert "'no such/name' is not a name" in blank and "'a/b/c' is not a name" in slashes
    assert stub.repos == before and READER == "hf_reader"


def test_a_hub_out_of_reach_and_an_upload_that_breaks_off(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with (
        pytest.raises(UserError, match="is out of reach, nothing was uploaded"),
        hub.explained_upload("me/x"),
    ):
        raise AssertionError("nothing may be tried")
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    with (
        pytest.raises(UserError, match="me/x broke off .ConnectionError: reset"),
        hub.explained_upload("me/x"),
    ):
        raise ConnectionError("reset")


def test_a_model_that_does_not_load_or_is_not_finite_is_not_uploaded(
    tiny: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(hub, "hub_answers", lambda: pytest.fail("nothing may be sent"))
    with pytest.raises(UserError, match="does not exist, or is not a folder"):
        sharing.push(tmp_path / "absent", "me/x")
    with pytest.raises(UserError, match="has no config.json"):
        sharing.push(tmp_path, "me/x")
    model = build_model(load_config(tiny / "tiny.yaml"))
    model.audio_projection.weight.data[0, 0] = float("inf")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="weight audio_projection.weight of .* is not finite"):
        sharing.push(tmp_path / "broken", "me/x")


def test_a_licence_that_the_hub_does_not_write_so(capsys):
    with pytest.raises(SystemExit) as end:
        sharing.main(["card", "--checkpoint", "x", "--license", "CC BY 4.0"])
    assert (
        end.value.code == 2
        and "is not an identifier of the hub, such as cc-by-4.0" in capsys.readouterr().err
    )
