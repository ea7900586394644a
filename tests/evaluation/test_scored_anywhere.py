"""evaluate.py, its report and zero-shot classification by pretrained models, or by hub name."""

import json
from pathlib import Path

import pytest

from retrieval.base.errors import UserError
from retrieval.evaluation import zero_shot
from tests.conftest import digests
from tests.evaluation.evaluate_command import evaluate
from tests.hub_stub import Hub, hub_of
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
        monkeypatch.chdir(tmp_path)
        yield running


def test_a_name_has_the_metrics_of_its_folder(hub, folders, tiny, tmp_path):
    before = digests(folders["clap"])
    data = ("--cache", tiny / "cache", "--quiet")
    assert evaluate("--checkpoint", "some/clap", "--output", tmp_path / "name", *data) == 0
    assert evaluate("--checkpoint", folders["clap"], "--output", tmp_path / "folder", *data) == 0
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("name", "folder")
    )
    assert first["text_to_audio"] == second["text_to_audio"]
    assert first["checkpoint"] == "some/clap"
    assert digests(folders["clap"]) == before
    assert not (tmp_path / "some").exists()
    made = ("--against", "some/pe_audio", "--report", tmp_path / "report")
    assert evaluate("--checkpoint", "some/clap", "--output", tmp_path / "r", *made, *data) == 0
    assert "some/pe_audio" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("kind", ["name", "folder"])
def test_results_do_not_go_into_the_folder_of_others(hub, folders, tiny, tmp_path, kind):
    checkpoint = "some/clap" if kind == "name" else folders["clap"]
    before = digests(folders["clap"])
    with pytest.raises(UserError, match=f"{checkpoint} .*--output") as caught:
        evaluate("--checkpoint", checkpoint, "--cache", tiny / "cache")
    assert "\n" not in str(caught.value)
    assert hub.requests == [] and digests(folders["clap"]) == before
    assert not (tmp_path / "some").exists()


def test_names_and_caches_that_are_missing(hub, tmp_path):
    out = ("--output", tmp_path / "out")
    with pytest.raises(UserError, match="one model twice"):
        evaluate("--checkpoint", "some/clap", "--checkpoint", "some/clap", *out)
    with pytest.raises(UserError, match="is the checkpoint itself"):
        evaluate(
            *("--checkpoint", "some/clap", "--against", "some/clap", "--report", tmp_path), *out
        )
    with pytest.raises(UserError, match="some/clap .*--cache"):
        evaluate("--checkpoint", "some/clap", *out)
    with pytest.raises(UserError, match="some/nothing"):
        evaluate("--checkpoint", "some/nothing", *out)
    assert not (tmp_path / "out").exists()


def test_zero_shot_by_name(hub, folders, tiny, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("file_name,label\n0.wav,dog\n1.wav,rain\n2.wav,wind\n")
    printed = []
    for checkpoint in ("some/pe_audio", str(folders["pe_audio"])):
        arguments = ["--checkpoint", checkpoint, "--cache", str(tiny / "cache"), "--quiet"]
        output = tmp_path / f"{len(printed)}.csv"
        arguments += ["--labels", str(tmp_path / "labels.csv"), "--output", str(output)]
        assert zero_shot.main(arguments) == 0
        printed.append(capsys.readouterr().out.replace(str(output), ""))
    assert printed[0] == printed[1] and "top-1" in printed[0]
    assert (tmp_path / "0.csv").read_text() == (tmp_path / "1.csv").read_text()
