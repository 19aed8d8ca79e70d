"""Trials as runs of Ray Train, side by side.

A run has its own controller, an actor on the driver's node. So a trial that fails starts again alone, and the dashboard
shows each by its name. (Ray Tune around Ray Train adds a process a trial and gives nothing: docs/how-it-works.md.)
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from upl_ray.cluster.trials import ATTEMPTS, LOOK_S, Body, Event, Looks, Report, Trial, Workers, raise_first, reason_of


def train_runs(trials: Sequence[Trial], workers: Workers) -> Looks:
    """Trials as runs of Ray Train, which a task on the driver's node waits for.

    The driver itself must not: `fit` can only be waited for in threads, which are in Ray when a signal ends the driver,
    and then Python crashes. The task is killed with the job, and its runs with it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": here}
    looks: Any = ray.remote(_wait_for_runs).options(num_returns="streaming", **options).remote(trials, workers)
    failures: list[str] = []
    for look in looks:
        events, left, failures = ray.get(look)
        yield events, left
    raise_first(failures, len(trials))


def _wait_for_runs(trials: Sequence[Trial], workers: Workers) -> Iterator[tuple[list[Event], set[int], list[str]]]:
    """Looks at the runs, with the errors of those that have failed."""
    os.environ["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "1"  # the dashboard's page of runs
    over: dict[int, BaseException | None] = {}  # the runs that have ended, and why if they failed
    # Ray Train's notes about itself, which nobody reads: members and checkpoints go to storage without its help, where
    # each note would be some requests. The files by which reports of the controllers come here lie beside them.
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
                lines = _new_lines(file, read[i])
                events += [(i, json.loads(line)) for line in lines]
                read[i] += sum(map(len, lines))
            yield events, left, [str(error) for error in over.values() if error]


def _new_lines(file: Path, first: int) -> list[bytes]:
    """The whole lines of a file from a byte on; none if there is no file yet."""
    if not file.exists():
        return []
    with file.open("rb") as stream:
        stream.seek(first)
        return [line for line in stream if line.endswith(b"\n")]


def _wait_for_run(over: dict[int, BaseException | None], i: int, trial: Trial, workers: Workers, reports: Path) -> None:
    try:
        _train(trial, workers, reports)
    except BaseException as error:  # noqa: BLE001  # whichever it is, the driver raises it
        over[i] = error
    else:
        over[i] = None


def _train(trial: Trial, workers: Workers, reports: Path) -> None:
    callbacks: list[Any] = [ReportWriter(reports), StartWriter(reports)]  # the type of Ray Tune is declared
    TorchTrainer(
        partial(_report_all, trial.body),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu="GPU" in workers.resources, resources_per_worker=dict(workers.resources)
        ),
        torch_config=TorchConfig(backend=workers.backend),
        run_config=ray.train.RunConfig(
            name=trial.name,
            storage_path=str(reports.parent),
            failure_config=ray.train.FailureConfig(max_failures=ATTEMPTS - 1),
            callbacks=callbacks,
        ),
    ).fit()


def _report_all(body: Body) -> None:
    """Body of one worker of Ray Train."""
    for report in body():
        ray.train.report(report)


class ReportWriter(ray.train.UserCallback):
    """Passes what happens to a run from its controller to the task that waits for it, which is on the same node.

    Args:
        file: gets a line of JSON for each event.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def after_report(self, run_context: Any, metrics: list[Report], checkpoint: Any) -> None:
        """Called by Ray Train when all workers have reported."""
        _write(self._file, metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train when workers have failed, before it starts them again."""
        _write(self._file, reason_of(next(iter(worker_exceptions.values()))))


class StartWriter(WorkerGroupCallback):
    """Says when a run waits for room, and when its workers have started, which is long before their first report.

    Ray Train tells so only to callbacks of this kind, which is not documented.

    Args:
        file: as of `ReportWriter`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Called by Ray Train before it asks for resources, in every attempt."""
        _write(self._file, None)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by Ray Train when all workers are there."""
        _write(self._file, {})


def _write(path: Path, event: Report | str | None) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
