"""`~` in every path of a setting or option, and options that are given twice."""

import argparse
import ast
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import train
from benchmarks.compare_runs import models_of_groups
from data_prep import build_clotho
from retrieval.base.errors import OneLineParser, UserError, expand_home
from retrieval.config import Config, load_config
from retrieval.evaluation.options import parse_arguments
from retrieval.search import __main__ as search
from tests.conftest import ROOT, mistake

NO_PATHS = {"audio_encoder.name", "pooling.name", "loss.name", "loss.supervised"}
NO_PATHS |= {"projection.name", "projection.activation"}
FOLDERS = ("retrieval", "data_prep", "benchmarks")
COMMANDS = [
    ROOT / "train.py",
    ROOT / "evaluate.py",
    *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
]
NEEDED = {
    "loss.teachers": ["loss.name=distillation"],
    "data.frame_cache": ["audio_encoder.frozen=true"],
}  # by these settings
PATH_TYPES = {"Path", "path_argument", "_folder"}
METAVARS = {"DIR", "FILE", "PATH", "FOLDER", "ROOT", "CSV"}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_leading_tilde_is_the_home_folder_and_all_else_stays(home):
    assert expand_home("~/runs/x") == f"{home}/runs/x" and expand_home("~") == str(home)
    assert expand_home("~root/x") == os.path.expanduser("~root/x") != "~root/x"
    for text in ("laion/clap-htsat-unfused", "roberta-large", "data/~/x", "./~x", "/a/~", "", "a~"):
        assert expand_home(text) == text
    with pytest.raises(ValueError, match="~nobody_of_that_name is not a user's home folder"):
        expand_home("~nobody_of_that_name/x")
    Path("~nobody_of_that_name").touch()
    assert expand_home("~nobody_of_that_name") == "~nobody_of_that_name"  # as a shell has it


def texts_of(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Names of the settings that hold a text, or several."""
    names = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += texts_of(field.annotation, f"{prefix}{name}.")
        elif "str" in str(field.annotation):
            names.append(prefix + name)
    return names


def value_of(config: Config, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def settings_that_hold_a_path() -> list[str]:
    """Every text that is not a name of a part: a new setting is among them."""
    return [name for name in texts_of(Config) if name not in NO_PATHS and "Literal" not in name]


def test_the_settings_that_hold_a_path_are_found():
    assert {
        "data.cache",
        "data.frame_cache",
        "train.output",
        "train.init_from",
        "train.caches",
        "loss.teachers",
    } < set(settings_that_hold_a_path())


@pytest.mark.parametrize("name", settings_that_hold_a_path())
@pytest.mark.parametrize("place", ["override", "YAML"])
def test_every_path_of_the_settings(home, name, place):
    many = name in ("train.caches", "loss.teachers")
    value = ["~/a", "~/b"] if many else "~/a"
    expected = [f"{home}/a", f"{home}/b"] if many else f"{home}/a"
    section, key = name.split(".")
    overrides = NEEDED.get(name, []) + (
        [f"{name}=[~/a, ~/b]" if many else f"{name}=~/a"] if place == "override" else []
    )
    settings = {section: {key: value}} if place == "YAML" else {}
    (home / "x.yaml").write_text(yaml.safe_dump(settings))
    assert value_of(load_config(home / "x.yaml", overrides), name) == expected
    wrong = f"{name}=[~nobody_of_that_name/a]" if many else f"{name}=~nobody_of_that_name/a"
    with pytest.raises(
        UserError, match=rf"{name}.*~nobody_of_that_name is not a user's home folder"
    ) as caught:
        load_config(home / "x.yaml", [wrong])
    assert "\n" not in str(caught.value)


def test_config_yaml_holds_the_expanded_path(home):
    """It means the same to another user, who evaluates the run."""
    (home / "x.yaml").write_text(
        "data: {cache: ~/cache}\ntrain: {caches: [~/a, data/b], output: ~/runs/x}"
    )
    config = load_config(home / "x.yaml")
    assert (config.data.cache, config.train.output) == (f"{home}/cache", f"{home}/runs/x")
    assert config.train.caches == [f"{home}/a", "data/b"]


def test_two_spellings_of_one_folder_are_one(home):
    (home / "x.yaml").write_text(f"train: {{caches: [~/a, {home}/a]}}")
    with pytest.raises(UserError, match="train"):
        load_config(home / "x.yaml")


def test_every_option_that_names_a_file_has_the_type_of_paths():
    """type=Path, which OneLineParser expands, or the search's own; no other parser is used."""
    found, wrong = 0, []
    for path in COMMANDS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in ("add_argument", "add"):  # add = parser.add_argument
                metavars = ast.walk(keywords["metavar"]) if "metavar" in keywords else ()
                if METAVARS & {each.value for each in metavars if isinstance(each, ast.Constant)}:
                    found += 1
                    if getattr(keywords.get("type"), "id", None) not in PATH_TYPES:
                        wrong.append(f"{path.name}: {ast.unparse(node)[:80]}")
            elif name == "ArgumentParser":
                wrong.append(f"{path.name}: {ast.unparse(node)[:80]}")
    assert found > 20 and wrong == []


def test_commands_take_a_path_below_the_home_folder(home):
    assert f"config {home}/y.yaml does not exist" in mistake(
        lambda: train.main(["--config", "~/y.yaml"])
    )
    assert f"{home}/absent" in mistake(
        lambda: parse_arguments(["--checkpoint", "~/absent", "--cache", "~/cache"], "")
    )
    assert f"{home}/absent" in mistake(
        lambda: search.main(["query", "a dog", "--index", "~/absent"])
    )
    assert f"{home}/absent" in mistake(lambda: build_clotho.main(["--root", "~/absent"]))
    assert models_of_groups(["a=~/b,c"], "evaluation") == {"a": [home / "b", Path("c")]}
    assert not Path("~").exists()


def parser() -> OneLineParser:
    made = OneLineParser(prog="command")
    made.add_argument("--config", type=Path, required=True)
    made.add_argument("--ids", nargs="+", default=[])
    made.add_argument("--checkpoint", type=Path, action="append")
    made.add_argument("--quiet", action="store_true")
    made.add_argument("rest", nargs="*")
    return made


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "a", "--config", "b"], "--config: given twice, a and b"),
        (["--config=a", "rest", "--conf", "a"], "--conf"),
        (
            ["--config", "a", "--ids", "1", "2", "--ids", "3"],
            "--ids: given twice, 1 2 and 3; give all values after one",
        ),
    ],
)
def test_an_option_given_twice_is_refused(capsys, arguments, named):
    with pytest.raises(SystemExit):
        parser().parse_intermixed_args(arguments)
    assert named in capsys.readouterr().err


def test_options_that_may_be_repeated_stay_so(home):
    made = parser()
    for _ in range(2):  # a parser that is used twice has forgotten
        found = made.parse_intermixed_args(
            [
                "--quiet",
                "--config",
                "~/a",
                "x",
                "--checkpoint",
                "~/b",
                "--quiet",
                "--checkpoint",
                "user/name",
                "y",
            ]
        )
    assert found == argparse.Namespace(
        config=home / "a",
        ids=[],
        checkpoint=[home / "b", Path("user/name")],
        quiet=True,
        rest=["x", "y"],
    )


def test_train_refuses_two_configs_and_a_setting_that_is_set_twice(home):
    for arguments in (
        ["--config", "a.yaml", "--config", "b.yaml"],
        ["--config", "a.yaml", "train.epochs=2", "seed=1", "train.epochs=3"],
    ):
        text = mistake(lambda arguments=arguments: train.main(arguments))
        assert "twice" in text and ("--config" in text or "train.epochs" in text)
