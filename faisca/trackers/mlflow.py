"""MLflow, through its client alone: its own variables say where runs are kept (MLFLOW_TRACKING_URI)."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from faisca.text import json_text
from faisca.trackers.tracker import PROJECT, Opening

MOST = 100
"""parameters that a call of its takes"""


def open_record(opening: Opening) -> "Client":
    """A run of its in the experiment MLFLOW_EXPERIMENT_NAME, or the same again."""
    client = MlflowClient()
    if opening.id:
        client.update_run(opening.id, status="RUNNING")
        opened = Client(client, opening.id)
    else:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else client.create_experiment(experiment)
        opened = Client(client, client.create_run(place, run_name=opening.name).info.run_id)
        params = [Param(name, str(value)) for name, value in opening.config.items()]
        for first in range(0, len(params), MOST):
            client.log_batch(opened.id, params=params[first : first + MOST])
    client.log_text(opened.id, json_text(dict(opening.config), indent=2), "config.json")  # a resumed run's may differ
    return opened


class Client:
    """Its run, as a `Tracker`."""

    def __init__(self, client: MlflowClient, id: str) -> None:
        self._client, self.id = client, id

    def numbers(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One call."""
        now = int(1000 * time.time())
        metrics = [Metric(f"{stage}/{name}", value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def texts(self, stage: str, step: int, texts: list[str]) -> None:
        """A file."""
        self._client.log_text(self.id, "\n\n".join(texts), f"samples/{stage}-{step:06d}.txt")

    def picture(self, name: str, file: Path) -> None:
        """The file itself."""
        self._client.log_artifact(self.id, str(file), str(Path(name).parent))

    def close(self, *, finished: bool) -> None:
        """With what became of it."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")
