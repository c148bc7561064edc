"""MLflow: what it is handed, from a double; and the real package where it is installed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from distill.training.loggers.base import Outcome, Run, kept_id
from distill.training.loggers.mlflow import MLflow
from runtime.errors import MissingError


class Double:
    """The part of the package that is used: a server with its runs."""

    class MlflowException(Exception):
        pass

    entities = SimpleNamespace(Metric=lambda *values: values)

    def __init__(self):
        self.uris, self.experiments, self.runs = [], {}, {}

    def get_tracking_uri(self):
        return "http://set"

    def MlflowClient(self, uri):
        self.uris.append(uri)
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = []
        return name

    def create_run(self, experiment, run_name):
        run_id = f"run{len(self.runs)}"
        self.experiments[experiment].append(run_id)
        self.runs[run_id] = {"name": run_name, "params": {}, "metrics": [], "images": [], "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        if run_id not in self.runs:
            raise self.MlflowException("no such run")
        self.runs[run_id]["status"] = status

    def log_param(self, run_id, name, value):
        self.runs[run_id]["params"][name] = value

    def log_batch(self, run_id, metrics):
        self.runs[run_id]["metrics"] += [(tag, value, step) for tag, value, _, step in metrics]

    def log_image(self, run_id, pixels, file):
        self.runs[run_id]["images"].append((pixels.shape, file))

    def set_terminated(self, run_id, status):
        self.runs[run_id]["status"] = status


@pytest.fixture
def double(monkeypatch):
    made = Double()
    monkeypatch.setitem(sys.modules, "mlflow", made)
    return made


def train(place, folder, step=0):
    log = MLflow(place)
    line = log.begin(Run("student", folder, {"epochs": 3, "data": "x" * 900}, [], step))
    log.scalars(step + 10, {"val_top1_percent": 50.0})
    log.image(step + 10, "val/worst", np.zeros((20, 30, 3), np.uint8))
    log.end(Outcome.FINISHED)
    return line


def test_figures_and_pictures_arrive_and_the_run_is_closed(double, tmp_path):
    assert train("birds", tmp_path) == "run run0 of http://set"
    assert double.experiments == {"birds": ["run0"]}
    run = double.runs["run0"]
    assert run["name"] == "student" and run["params"]["epochs"] == "3" and len(run["params"]["data"]) == 500
    assert run["metrics"] == [("val/top1", 50.0, 10)] and run["images"] == [((20, 30, 3), "val_worst_10.png")]
    assert run["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("place", "uri", "experiment"),
    [
        ("birds", "http://set", "birds"),
        ("http://other:5000", "http://other:5000", "large2small"),
        ("file:///tmp/x", "file:///tmp/x", "large2small"),
        ("databricks", "databricks", "large2small"),
    ],
)
def test_a_uri_names_the_server_and_any_other_word_the_experiment(double, tmp_path, place, uri, experiment):
    train(place, tmp_path)
    assert double.uris == [uri] and list(double.experiments) == [experiment]


def test_a_resumed_run_goes_on_as_the_same_one(double, tmp_path):
    train("birds", tmp_path)
    train("birds", tmp_path, step=10)
    assert [step for _, _, step in double.runs["run0"]["metrics"]] == [10, 20] and len(double.runs) == 1
    assert kept_id(tmp_path, "mlflow") == "run0"


def test_a_server_that_does_not_know_the_run_gets_a_new_one(double, tmp_path):
    train("birds", tmp_path)
    double.runs.clear()
    double.runs["other"] = {}
    train("birds", tmp_path, step=10)
    assert kept_id(tmp_path, "mlflow") == "run1" and double.runs["run1"]["status"] == "FINISHED"


def test_a_server_that_does_not_answer_is_named_before_the_training(double, monkeypatch):
    def away(max_results):
        raise double.MlflowException("connection\nrefused")

    double.search_experiments = away
    with pytest.raises(MissingError, match=r"--mlflow: http://x cannot be used \(connection refused\)"):
        MLflow("http://x").require()


def test_the_real_package_keeps_a_run_in_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "kept").as_uri()
    MLflow(uri).require()
    train(uri, tmp_path)
    train(uri, tmp_path, step=10)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("large2small").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["epochs"] == "3"
    assert [each.step for each in client.get_metric_history(run.info.run_id, "val/top1")] == [10, 20]
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {
        "val_worst_10.png",
        "val_worst_20.png",
    }
