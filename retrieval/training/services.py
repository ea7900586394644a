"""Trackers beside TensorBoard: wandb, trackio and mlflow, by Accelerate's own classes.

The environment says where a service is (WANDB_MODE, WANDB_PROJECT, TRACKIO_SPACE_ID,
MLFLOW_TRACKING_URI, ...). Without such a variable, trackio and mlflow write on this machine. The
project is called text-to-audio-retrieval, a run like its folder. RUN/trackers.json holds the ids by
which a resumed run goes on.
"""

import importlib.util
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, MLflowTracker, TrackioTracker, WandBTracker

from retrieval.base.errors import UserError, one_line
from retrieval.base.extras import DISTRIBUTION
from retrieval.base.files import read_json, write_json

PROJECT = DISTRIBUTION
IDS = "trackers.json"
SECONDS_TO_ANSWER = 10.0
# Pictures for wandb are drawn by matplotlib; mlflow's file on this machine is SQLite.
PACKAGES = {
    "wandb": ("wandb", "matplotlib", "PIL"),
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}


def check_packages(names: list[str]) -> None:
    """Raise UserError if a package that a service needs is not installed."""
    for name in names:
        for package in PACKAGES.get(name, ()):
            found = importlib.util.find_spec(package)
            if found is None or found.origin is None:  # wandb/, a folder that wandb left behind
                raise UserError(
                    f"train.tracker={name}: {package} is not installed: pip install"
                    f' "{DISTRIBUTION}[tracking]"'
                )


def check_services(names: list[str]) -> None:
    """Check packages, logins and servers before a run begins; asks nothing on a terminal.

    Raises:
        UserError: A package or login is missing, or a server does not answer.
    """
    check_packages(names)
    if "wandb" in names:
        _check_wandb()
    servers = {"trackio": "TRACKIO_SERVER_URL", "mlflow": "MLFLOW_TRACKING_URI"}
    for name, variable in servers.items():
        address = os.environ.get(variable, "")
        if name in names and address.startswith(("http://", "https://")):
            remedy = "start the server, or unset the variable to write on this machine"
            _check_answers(name, variable, address, remedy)


class Service:
    """A tracker of Accelerate that a run reports to.

    A service that fails during training is given up with a note: training goes on without it.

    Args:
        name: Of the service.
        tracker: Started.
    """

    def __init__(self, name: str, tracker: GeneralTracker):
        self.name = name
        self.tracker: GeneralTracker | None = tracker
        self.takes_pictures = hasattr(tracker, "log_images")

    def settings(self, values: dict[str, Any]) -> None:
        """Store the settings of the run, by flat name."""
        self._tell(lambda tracker: tracker.store_init_configuration(values))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one point in the curve of each name."""
        if self.name == "mlflow":  # other characters are refused
            values = {re.sub(r"[^\w\-. :/]", "_at_", name): value for name, value in values.items()}
        self._tell(lambda tracker: tracker.log(values, step=step))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Write pixels uint8 (H, W, 3), if the service takes pictures."""
        if self.takes_pictures:
            self._tell(lambda tracker: tracker.log_images({name: [pixels]}, step=step))

    def table(self, step: int, name: str, rows: dict[str, float]) -> None:
        """Write a table of names and values, if the service takes tables."""
        if hasattr(self.tracker, "log_table"):
            data = [[key, value] for key, value in rows.items()]
            columns = ["name", "value"]
            self._tell(
                lambda tracker: tracker.log_table(name, columns=columns, data=data, step=step)
            )

    def close(self) -> None:
        self._tell(lambda tracker: tracker.finish())
        self.tracker = None
        if self.name == "mlflow":
            _forget_local_mlflow()

    def _tell(self, call: Callable[[Any], None]) -> None:
        if self.tracker is None:
            return
        try:
            call(self.tracker)
        except Exception as error:
            self.tracker = None
            print(
                f"note: {self.name} has failed ({one_line(error)}); training goes on without it",
                file=sys.stderr,
            )


def open_services(
    names: list[str], folder: Path, resume: bool, settings: dict[str, Any]
) -> list[Service]:
    """Start the services among `names`.

    Args:
        names: train.tracker.
        folder: Run folder, which exists.
        resume: Go on with the runs whose ids are in the folder.
        settings: Of the run, by flat name.

    Raises:
        UserError: A service does not start.
    """
    ids: dict[str, str] = {}
    path = folder / IDS
    if resume and path.exists():
        try:
            ids = dict(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read ({one_line(error)}); put it back from a copy, or delete it:"
                " trackers then begin a new run"
            ) from None
    services: list[Service] = []
    for name in names:
        if name not in SERVICES:
            continue
        try:
            tracker, run_id = SERVICES[name](folder, ids.get(name))
        except Exception as error:
            for service in services:
                service.close()
            if name == "mlflow":
                _forget_local_mlflow()
            advice = f"; or delete {path}: it begins a new run then" if name in ids else ""
            raise UserError(
                f"train.tracker={name} does not start ({one_line(error)}); check its settings in"
                f" the environment, or choose another tracker{advice}"
            ) from None
        services.append(Service(name, tracker))
        if name not in ids or name != "mlflow":  # mlflow refuses other values, such as of max_steps
            services[-1].settings(settings)
        ids[name] = run_id
    if services:
        write_json(path, ids)
    return services


# --- the services: run folder, id of the run to go on with -> started tracker and its id ---


def _wandb(folder: Path, run_id: str | None) -> tuple[GeneralTracker, str]:
    import wandb

    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        name=folder.resolve().name,
        dir=str(folder),
        id=run_id,
        resume="allow" if run_id else None,
        settings=wandb.Settings(console="off"),  # it would take over stdout and stderr
    )
    tracker.start()
    return tracker, tracker.tracker.id


def _trackio(folder: Path, run_id: str | None) -> tuple[GeneralTracker, str]:
    name = run_id or folder.resolve().name
    tracker = TrackioTracker(PROJECT, name=name, resume="allow" if run_id else "never", embed=False)
    tracker.start()
    return tracker, tracker.tracker.name


def _mlflow(folder: Path, run_id: str | None) -> tuple[GeneralTracker, str]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
    tracker = MLflowTracker(PROJECT, run_id=run_id, run_name=folder.resolve().name)
    tracker.start()
    return tracker, tracker.tracker.info.run_id


SERVICES: dict[str, Callable[[Path, str | None], tuple[GeneralTracker, str]]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


def _forget_local_mlflow() -> None:
    """Undo set_tracking_uri, which also sets a variable: the next run in this process has its own.

    A variable of the user stays.
    """
    import mlflow

    mlflow.set_tracking_uri(None)


def _check_wandb() -> None:
    import wandb

    settings = wandb.setup().settings
    if settings.mode in ("offline", "dryrun", "disabled"):
        return
    offline = "set WANDB_MODE=offline, and run `wandb sync` later"
    # wandb 0.31 may wait for ever at its end if it has given up a request before.
    _check_answers("wandb", "WANDB_BASE_URL", settings.base_url, offline)
    try:
        is_logged_in = wandb.login(prompt=False, verify=True)
    except Exception as error:
        raise UserError(
            f"train.tracker=wandb: {one_line(error)}; log in by `wandb login`, or {offline}"
        ) from None
    if not is_logged_in:
        raise UserError(
            "train.tracker=wandb: no login found; run `wandb login`, set WANDB_API_KEY, or"
            f" {offline}"
        )


def _check_answers(name: str, variable: str, address: str, remedy: str) -> None:
    """Raise UserError if no server answers at `address`.

    Any HTTP status is an answer, and so is a certificate that Python does not know: the service's
    own package may know it.
    """
    try:
        urllib.request.urlopen(address, timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError:
        return
    except OSError as error:
        if isinstance(getattr(error, "reason", error), ssl.SSLError):
            return
        raise UserError(
            f"train.tracker={name}: {variable}={address} does not answer ({one_line(error)});"
            f" {remedy}"
        ) from None
