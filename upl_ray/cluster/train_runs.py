"""Trials as runs of Ray Train, side by side.

A run has its own controller, an actor on the driver's node. So a trial that fails starts again alone, and the dashboard
shows each by its name. (Ray Tune around Ray Train adds a process a trial and gives nothing: docs/how-it-works.md.)
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from upl_ray.cluster.placement import GIB
from upl_ray.cluster.trials import ATTEMPTS, LOOK_S, Body, Event, Looks, Report, Trial, Workers, raise_first, reason_of

# Of the processes that a run of Ray Train 2.60 adds on the driver's node: a controller (0.37 GiB), and actors that
# clean up, let workers wait for each other, look for preemptions, and manage the data sets of others (0.11 GiB each).
RUN_MEMORY = 0.8 * GIB


def most_runs() -> int:
    """The number of runs of Ray Train whose own processes the driver's node can hold."""
    driver = ray.get_runtime_context().get_node_id()
    memory = next(n["Resources"].get("memory", math.inf) for n in ray.nodes() if n["NodeID"] == driver)
    return int(max(1, min(memory / RUN_MEMORY, 1e9)))


def train_runs(trials: Sequence[Trial], workers: Workers) -> Looks:
    """Trials as runs of Ray Train, each waited for in a thread of the driver."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # the dashboard's page of runs
    over: dict[int, Exception | None] = {}  # the runs that have ended, and why if they failed
    # Ray Train's notes about itself, which nobody reads: members and checkpoints go to storage without its help, where
    # each note would be some requests. The files by which reports reach the driver lie beside them.
    with tempfile.TemporaryDirectory(prefix="upl-trials-", ignore_cleanup_errors=True) as folder:
        files = [Path(folder, f"{i}.jsonl") for i in range(len(trials))]
        for i, trial in enumerate(trials):
            wait = partial(_wait_for_run, over, i, trial, workers, files[i])
            threading.Thread(target=wait, name=trial.name, daemon=True).start()
        read = [0] * len(trials)
        left = set(range(len(trials)))
        while left:
            time.sleep(LOOK_S)
            left -= over.keys()  # before their last reports are read
            events: list[Event] = []
            for i, file in enumerate(files):
                lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
                events += [(i, json.loads(line)) for line in lines[read[i] :]]
                read[i] = len(lines)
            yield events, left
    raise_first([error for error in over.values() if error], len(trials))


def _wait_for_run(over: dict[int, Exception | None], i: int, trial: Trial, workers: Workers, reports: Path) -> None:
    trainer = TorchTrainer(
        partial(_report_all, trial.body),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu="GPU" in workers.resources, resources_per_worker=dict(workers.resources)
        ),
        # NCCL needs a GPU for each rank.
        torch_config=TorchConfig(backend="gloo" if workers.resources.get("GPU", 0.0) < 1 else None),
        run_config=ray.train.RunConfig(
            name=trial.name,
            storage_path=str(reports.parent),
            failure_config=ray.train.FailureConfig(max_failures=ATTEMPTS - 1),
            callbacks=[ReportWriter(reports)],  # type: ignore[list-item]  # the type of Ray Tune is declared
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001  # whichever it is, the driver raises it
        over[i] = error
    else:
        over[i] = None


def _report_all(body: Body) -> None:
    """Body of one worker of Ray Train."""
    for report in body():
        ray.train.report(report)


class ReportWriter(ray.train.UserCallback):
    """Passes what happens to a run from its controller to the driver, which is on the same node.

    Args:
        file: gets a line of JSON for each event.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def after_report(self, run_context: Any, metrics: list[Report], checkpoint: Any) -> None:
        """Called by Ray Train when all workers have reported."""
        self._write(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train when workers have failed, before it starts them again."""
        self._write(reason_of(next(iter(worker_exceptions.values()))))

    def _write(self, event: Report | str) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
