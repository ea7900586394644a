"""wandb, trackio and mlflow: the real packages, offline; what they stored is read back.

Also logins, packages and servers that are missing.
"""

import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest

import train as script
from retrieval.base.errors import UserError
from retrieval.base.stopping import Interrupted
from retrieval.config import load_config
from retrieval.config.settings import TrackerName
from retrieval.config.text import flatten
from retrieval.training import loop, services
from retrieval.training.services import PROJECT, Service, check_services, open_services
from retrieval.training.tracking import Tracker
from tests.killed_runs import read_losses, read_weights
from tests.training.test_training import read_events

NAMES = ["wandb", "trackio", "mlflow"]
MAP = "validation/text_to_audio/mAP@10"


def train(tiny: Path, output: Path, *overrides: str, resume: bool = False) -> Path:
    settings = [f"train.output={output}", *overrides]
    loop.train(load_config(tiny / "tiny.yaml", settings), resume=resume)
    return output


@pytest.fixture(autouse=True)
def no_service_is_known(monkeypatch, tmp_path_factory):
    """No login, server or project of whoever runs the tests; wandb reads its variables anew."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    home = str(tmp_path_factory.mktemp("home"))
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, home)
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def tracked(tiny, tmp_path_factory) -> Path:
    """A run with all trackers, interrupted in its eighth step and resumed."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path_factory.mktemp("tracked") / "my run"
    settings = [f"train.tracker=[tensorboard, {', '.join(NAMES)}]", "train.validate_first=true"]
    train_step = loop.train_step

    def stopped(run, batch):
        if run.progress.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))  # read at import
        before = signal.getsignal(signal.SIGTERM)
        with mock.patch.object(loop, "train_step", stopped), pytest.raises(Interrupted):
            train(tiny, run, *settings)
        signal.signal(signal.SIGTERM, before)
        # train.max_steps may change: mlflow would refuse another value of a parameter
        train(tiny, run, *settings, "train.max_steps=100", resume=True)
        assert "MLFLOW_TRACKING_URI" not in os.environ  # the next run has its own file
    return run


def ids_of(run: Path) -> dict[str, str]:
    return json.loads((run / "trackers.json").read_text())


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: protobuf in LevelDB's log format, after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole one, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_points(run: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any], list[Any]]:
    """Curves, settings, and the descriptions of the run in its two parts."""
    curves, settings, runs = {}, {}, []
    parts = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(parts) == 2
    for part in parts:
        for record in wandb_records(part):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                runs.append(record.run)
            if kind == "config":
                settings |= {item.key: json.loads(item.value_json) for item in record.config.update}
            if kind == "history":
                values = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                for name, value in values.items():
                    curves.setdefault(name, {})[int(values["_step"])] = value
    return curves, settings, runs


def test_wandb_has_curves_settings_pictures_and_the_final_table(tracked):
    curves, settings, runs = wandb_points(tracked)
    assert {(run.run_id, run.display_name, run.project) for run in runs} == {
        (ids_of(tracked)["wandb"], "my run", PROJECT)
    }
    assert curves["train/loss"] == read_losses(tracked)
    assert list(curves[MAP]) == [0, 6, 12]
    assert settings["optimizer.lr.pooling"] == 0.002 and settings["pooling.name"] == "tap"
    pictures = tracked.glob("wandb/*/files/media/images/**/*.png")
    assert {path.name.split("_")[0] for path in pictures} == {"scores", "ranks", "0.wav"}
    assert "final/best/text_to_audio/mAP@10" in curves
    assert [path.name for path in tracked.glob("wandb/*/files/media/table/final*")]


def test_mlflow_has_curves_and_settings_of_one_run(tracked):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tracked}/mlflow.db")
    run_id = ids_of(tracked)["mlflow"]
    points = {point.step: point.value for point in client.get_metric_history(run_id, "train/loss")}
    assert points == read_losses(tracked)
    name = MAP.replace("@", "_at_")
    assert [point.step for point in client.get_metric_history(run_id, name)] == [0, 6, 12]
    (experiment,) = client.search_experiments(filter_string=f"name = '{PROJECT}'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "my run", "FINISHED")
    assert run.data.params["optimizer.lr.pooling"] == "0.002"
    final = json.loads((tracked / "metrics.json").read_text())["last"]["text_to_audio"]["mAP@10"]
    assert run.data.metrics["final/last/text_to_audio/mAP_at_10"] == final


def test_trackio_has_curves_and_settings_of_one_run(tracked):
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs(PROJECT) == ["my run"]
    rows = SQLiteStorage.get_logs(PROJECT, "my run")
    found = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert found == read_losses(tracked)
    assert [row["step"] for row in rows if MAP in row] == [0, 6, 12]
    assert SQLiteStorage.get_run_config(PROJECT, "my run")["optimizer.lr.pooling"] == 0.002


def test_tensorboard_has_what_it_always_has(tracked):
    tags = read_events(tracked).Tags()
    assert {"validation/scores", "validation/ranks"} <= set(tags["images"]) and tags["audio"]
    assert "final/last/text_to_audio/mAP@10" in tags["scalars"]


def test_trackers_change_no_number(tiny, tracked, tmp_path):
    plain = train(tiny, tmp_path / "plain", "train.tracker=none", "train.validate_first=true")
    assert read_weights(plain) == read_weights(tracked)
    assert not list(plain.glob("*tfevents*")) and not (plain / "trackers.json").exists()
    assert (plain / "history.csv").exists()


def test_other_processes_open_no_service(tmp_path):
    tracker = Tracker(tmp_path, resume_step=None, enabled=False, names=NAMES, settings={})
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.close()
    assert not list(tmp_path.iterdir())


# --- mistakes, before training begins ---


def user_error(call, *arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_also_by_a_dry_run(tiny, tmp_path, monkeypatch, name):
    find = services.importlib.util.find_spec
    monkeypatch.setattr(
        services.importlib.util, "find_spec", lambda found: None if found == name else find(found)
    )
    said = user_error(train, tiny, tmp_path / "run", f"train.tracker={name}")
    assert name in said and "[tracking]" in said
    dry_run = ["--config", str(tiny / "tiny.yaml"), "--dry-run"]
    assert user_error(script.main, [*dry_run, f"train.tracker={name}"]) == said
    assert not (tmp_path / "run").exists()
    assert script.main(dry_run) == 0  # negative control


def test_a_folder_of_the_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "sqlalchemyx").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(services.PACKAGES, "mlflow", ("sqlalchemyx",))
    assert "sqlalchemyx is not installed" in user_error(check_services, ["mlflow"])


def test_wandb_without_a_login_asks_no_question(tiny, tmp_path, monkeypatch, refusing_server):
    monkeypatch.setenv("WANDB_BASE_URL", refusing_server)
    monkeypatch.setattr("wandb.errors.term.can_use_terminput", lambda: True)
    monkeypatch.setattr("builtins.input", lambda *_: 1 / 0)
    monkeypatch.setattr("getpass.getpass", lambda *_: 1 / 0)
    said = user_error(train, tiny, tmp_path / "run", "train.tracker=wandb")
    assert "wandb login" in said and "WANDB_MODE=offline" in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def refusing_server():
    """Address of a server that knows nobody."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def wandb_at(monkeypatch):
    """Function that gives wandb a key and the address of a server."""

    def give(address: str) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)

    return give


def test_a_wandb_server_that_does_not_answer(wandb_at):
    wandb_at("http://127.0.0.1:9")
    said = user_error(check_services, ["wandb"])
    assert "WANDB_BASE_URL=http://127.0.0.1:9 does not answer" in said and "offline" in said


def test_a_server_that_accepts_and_says_nothing(wandb_at, monkeypatch):
    monkeypatch.setattr(services, "SECONDS_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        wandb_at(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "does not answer" in user_error(check_services, ["wandb"])


def test_a_wandb_server_that_does_not_know_the_key(wandb_at, refusing_server):
    wandb_at(refusing_server)
    said = user_error(check_services, ["wandb"])
    assert "wandb login" in said and "does not answer" not in said


@pytest.mark.parametrize(
    ("name", "variable"),
    [("mlflow", "MLFLOW_TRACKING_URI"), ("trackio", "TRACKIO_SERVER_URL")],
)
def test_a_server_that_does_not_answer(tiny, tmp_path, monkeypatch, name, variable):
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    said = user_error(train, tiny, tmp_path / "run", f"train.tracker={name}")
    assert variable in said and "127.0.0.1:9" in said and not (tmp_path / "run").exists()


def test_a_service_that_does_not_start_leaves_no_run(tiny, tmp_path, monkeypatch):
    def refuses(*_):
        raise RuntimeError("quota\nof runs")

    monkeypatch.setitem(services.SERVICES, "trackio", refuses)
    run, setting = tmp_path / "run", "train.tracker=[tensorboard, trackio]"
    assert "quota of runs" in user_error(train, tiny, run, setting)
    train(tiny, run, "train.tracker=none", "train.max_steps=1")  # not refused as an existing run
    assert (run / "metrics.json").exists()


def test_damaged_ids_are_named(tmp_path):
    (tmp_path / "trackers.json").write_text("{")
    said = user_error(open_services, ["mlflow"], tmp_path, resume=True, settings={})
    assert "trackers.json" in said


# --- during training ---


class Failing:
    """A tracker whose server is gone."""

    def __init__(self):
        self.calls = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls += 1
        raise ConnectionError("gone\nfor good")


def test_a_service_that_fails_during_training_is_given_up(capsys):
    service = Service("mlflow", failing := Failing())
    for step in (1, 2):
        service.scalars(step, {"train/loss": 1.0})
    service.close()
    assert failing.calls == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "mlflow" in line and "gone for good" in line


def test_every_name_of_a_service_is_known_everywhere():
    names = set(get_args(TrackerName)) - {"tensorboard"}
    assert names == services.SERVICES.keys() == services.PACKAGES.keys() == set(NAMES)


def test_settings_are_plain_values(tiny, tmp_path):
    settings = flatten(load_config(tiny / "tiny.yaml").model_dump())
    tracker = Tracker(tmp_path, resume_step=None, enabled=False, names=NAMES, settings=settings)
    assert {type(value) for value in tracker.settings.values()} == {bool, int, float, str}
