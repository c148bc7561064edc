"""MLflow, with --mlflow [URI|EXPERIMENT].

In:  figures and pictures.
Out: a run in an experiment of a tracking server, or of a folder of this machine.
Elsewhere: the interface (distill.training.loggers.base).
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.errors import MissingError

from .base import Outcome, Run, keep_id, kept_id, tags

EXPERIMENT = "large2small"
"""The experiment where only a server is named."""
STATUS = {Outcome.FINISHED: "FINISHED", Outcome.FAILED: "FAILED", Outcome.STOPPED: "KILLED"}
LONGEST_PARAM = 500
"""Letters of a setting that every server takes."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""How long a silent server holds up a training, unless the environment says otherwise: by default MLflow
tries for many minutes."""


class MLflow:
    """A `Logger` with --mlflow; place: the URI of a server (http://..., file:...) or an experiment's name."""

    name = "mlflow"

    def __init__(self, place: str) -> None:
        is_uri = ":" in place or place == "databricks"
        self.uri, self.experiment = (place, EXPERIMENT) if is_uri else ("", place)
        self.client: Any = None
        self.run_id = ""

    def require(self) -> None:
        """Raise MissingError where the server does not answer."""
        mlflow: Any = importlib.import_module("mlflow")
        uri = self._open()
        try:
            self.client.search_experiments(max_results=1)
        except mlflow.MlflowException as error:
            reason = " ".join(str(error).split())[:200]
            raise MissingError(
                f"--mlflow: {uri} cannot be used ({reason}). Give the URI of a server, or file:FOLDER for a"
                " folder of this machine"
            ) from error

    def _open(self) -> str:
        """A client, with patience that suits a training; the URI it is for."""
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        if self.uri.startswith("file:"):  # asked for by name, so its plea for a database is answered
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow: Any = importlib.import_module("mlflow")
        uri: str = self.uri or mlflow.get_tracking_uri()
        self.client = mlflow.MlflowClient(uri)
        return uri

    def begin(self, run: Run) -> str:
        uri = self._open()
        known = kept_id(run.folder, self.name)
        self.run_id = known if known and self._continue(known) else self._create(run)
        keep_id(run.folder, self.name, self.run_id)
        return f"run {self.run_id} of {uri}"

    def _continue(self, run_id: str) -> bool:
        """Whether the server knows the run; it is then marked as running again."""
        mlflow: Any = importlib.import_module("mlflow")
        try:
            self.client.update_run(run_id, status="RUNNING")
        except mlflow.MlflowException:
            return False
        return True

    def _create(self, run: Run) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else self.client.create_experiment(self.experiment)
        created: str = self.client.create_run(experiment, run_name=run.name).info.run_id
        for name, value in run.settings.items():
            self.client.log_param(created, name, str(value)[:LONGEST_PARAM])
        return created

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        now = int(1000 * time.time())
        metrics = [mlflow.entities.Metric(tag, value, now, step) for tag, value in tags(values).items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self.client.log_image(self.run_id, pixels, f"{name.replace('/', '_')}_{step}.png")

    def end(self, outcome: Outcome) -> None:
        self.client.set_terminated(self.run_id, STATUS[outcome])
