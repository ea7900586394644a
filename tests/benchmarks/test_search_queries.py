"""The benchmark of queries whose answer is known runs in miniature."""

import numpy as np
import torch

from benchmarks import search_queries
from retrieval.config import load_config
from retrieval.models.build import build_model


def test_few_scenes_of_few_kinds(tiny, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    model = build_model(load_config(tiny / "tiny.yaml")).eval()
    model.save_pretrained(tmp_path / "run" / "best")
    monkeypatch.setattr(search_queries, "KINDS", ["drops", "knock", "glass"])
    monkeypatch.setattr(search_queries, "COLLECTIONS", {"all": (3, 1), "one": (1, 3)})
    monkeypatch.setattr(search_queries, "FEWEST_CLIPS", 1)
    monkeypatch.setattr(search_queries, "PARTNERS", 2)
    monkeypatch.setattr(search_queries, "unrelated_score", lambda *_: 0.0)
    kinds = iter(([], ["drops", "knock"], ["knock"], ["glass", "drops"], ["drops"]))

    def scene(task):  # noise is enough; kinds known
        path, kind, number = task
        samples = 0.1 * np.random.default_rng(number).normal(size=8000)
        search_queries.soundfile.write(path, samples, 16_000)
        own = next(kinds) or ["glass"] if kind is None else [kind]
        return f"{path.parent.name}/{path.name}", own

    monkeypatch.setattr(search_queries, "write_scene", scene)
    arguments = ["--checkpoint", str(tmp_path / "run" / "best"), "--work", str(tmp_path / "work")]
    scenes = ["--single", "2", "--mixed", "5", "--num-proc", "1"]
    search_queries.main([*arguments, *scenes])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["all", "11", "0.00"]  # excerpts
    assert any("pairs of kinds A and B, 5 mixed scenes" in line for line in lines)
    assert "average precision" in lines[-1]


def test_a_scene_of_one_kind_holds_it_only(tmp_path):
    (tmp_path / "knock").mkdir()
    name, kinds = search_queries.write_scene((tmp_path / "knock" / "0.wav", "knock", 0))
    assert (name, kinds) == ("knock/0.wav", ["knock"])
    assert search_queries.soundfile.info(tmp_path / name).frames > 0
