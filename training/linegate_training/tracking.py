"""Where the numbers of a training go besides `log.jsonl`: TensorBoard or MLflow, behind one switch.

Rules kept here: one adapter each, imported only when it is chosen; nothing is sent anywhere but to the tracking server
that the user's MLFLOW_TRACKING_URI names.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from linegate.errors import LinegateError

EXPERIMENT = "linegate"


class Tracker(Protocol):
    """Takes the numbers of each epoch."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Take the numbers of the epoch that ended."""

    def close(self) -> None:
        """Write what is still held."""


class NoTracker:
    """Takes the numbers and keeps none."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoardTracker:
    """Writes event files into `<run>/tensorboard`."""

    def __init__(self, run_dir: Path, first_epoch: int) -> None:
        board: Any = _load("torch.utils.tensorboard", "tensorboard", "tensorboard")
        # What a killed run logged after its last checkpoint is computed again: purge it.
        self.writer = board.SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_epoch)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write one point for each value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class MLflowTracker:
    """Logs one MLflow run, to MLFLOW_TRACKING_URI or else into `<run>/mlflow`; a resumed training goes on in it."""

    def __init__(self, run_dir: Path, first_epoch: int, parameters: Mapping[str, object]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            # Files need no database; since MLflow 3 they have to be allowed.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (run_dir / "mlflow").absolute().as_uri()
        tracking: Any = _load("mlflow.tracking", "mlflow", "mlflow-skinny")
        self.failures: tuple[type[Exception], ...] = (importlib.import_module("mlflow.exceptions").MlflowException, OSError)
        self.uri = uri
        self.note = run_dir / "mlflow-run.txt"
        try:
            self.client = tracking.MlflowClient(tracking_uri=uri)
            if first_epoch > 1 and self.note.exists():
                self.run_id = self.note.read_text(encoding="utf-8").strip()
                self.client.update_run(self.run_id, "RUNNING")
                return
            known = self.client.get_experiment_by_name(EXPERIMENT)
            experiment = known.experiment_id if known else self.client.create_experiment(EXPERIMENT)
            self.run_id = self.client.create_run(experiment, run_name=run_dir.absolute().name).info.run_id
            self.note.write_text(self.run_id + "\n", encoding="utf-8")
            for name, value in parameters.items():
                self.client.log_param(self.run_id, name, value)
        except self.failures as error:
            raise self._told(error) from error

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log one metric for each value."""
        try:
            for name, value in values.items():
                self.client.log_metric(self.run_id, name, value, step=epoch)
        except self.failures as error:
            raise self._told(error) from error

    def close(self) -> None:
        """End the run."""
        try:
            self.client.set_terminated(self.run_id)
        except self.failures as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> LinegateError:
        reason = str(error).strip().split("\n")[0]
        return LinegateError(f'log = "mlflow": {self.uri}: {reason}: check MLFLOW_TRACKING_URI, or set log = "none"')


def open_tracker(
    kind: Literal["none", "tensorboard", "mlflow"], run_dir: Path, first_epoch: int, parameters: Mapping[str, object]
) -> Tracker:
    """Return the tracker that the setting `log` names, for a training that begins with `first_epoch` (1, or more if resumed).

    Raises:
        LinegateError: its library is not installed, or its server does not answer.
    """
    if kind == "tensorboard":
        return TensorBoardTracker(run_dir, first_epoch)
    if kind == "mlflow":
        return MLflowTracker(run_dir, first_epoch, parameters)
    return NoTracker()


def _load(module: str, switch: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise LinegateError(f'log = "{switch}" needs {package}, which is not installed: pip install {package}') from error
