"""Concurrent trials: as plain tasks, or as runs of Ray Train (`train_runs`).

The body of a trial is a generator that yields reports, the same in both ways. It finds its own way on from checkpoints,
so an attempt that failed is simply repeated, on any node with room.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray

from upl_ray.cluster.placement import GIB
from upl_ray.errors import JobError, first_line

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of one trial
# Of the processes that a run of Ray Train 2.60 adds, most of them on the driver's node: a controller (0.37 GiB), and
# actors that clean up, let workers wait for each other, look for preemptions, and manage data sets (0.11 GiB each).
RUN_MEMORY = 0.8 * GIB
LOOK_S = 0.5  # between two looks at the trials

Report = dict[str, Any]
Body = Callable[[], Iterator[Report]]
# Index of a trial, and its report (empty: it runs), or why an attempt failed; after that, and after None, it waits.
Event = tuple[int, Report | str | None]
Looks = Iterator[tuple[list[Event], set[int]]]  # events since the look before, and the trials that are not over


@dataclass(frozen=True)
class Trial:
    """Some work that reports how far it is.

    Args:
        name: on the dashboard.
        body: yields reports, the first as soon as it runs, which may be empty; every worker of the trial runs it and
            yields as many.
    """

    name: str
    body: Body


@dataclass(frozen=True)
class Workers:
    """The workers of one trial.

    Args:
        count: their number; above 1 they are the ranks of a process group of torch.distributed.
        resources: that one of them holds: CPU, GPU, memory [bytes].
        ray_train: start them through Ray Train, which more than one need.
        backend: of their process group; NCCL needs a GPU for each.
    """

    count: int
    resources: Mapping[str, float]
    ray_train: bool
    backend: Literal["gloo", "nccl"] = "gloo"


def run_trials(
    trials: Sequence[Trial], workers: Workers, patience_s: float, on_report: Callable[[int, Report], None]
) -> None:
    """Run all trials at once, as far as there is room, and call `on_report` with the index and each report of a trial.

    Raises:
        JobError: none of the trials that are left has run for `patience_s`, as there is no room.
        RuntimeError: a trial has failed `ATTEMPTS` times; the others have been waited for.
    """
    look = _tasks
    if workers.ray_train:
        from upl_ray.cluster.train_runs import train_runs as look  # Ray Train takes a second to import
    running: set[int] = set()
    last_running = time.monotonic()
    for events, left in look(trials, workers):
        for i, report in events:
            if isinstance(report, str):
                log.warning("%-12s %s failed: %s", "trial", trials[i].name, report)
            if isinstance(report, dict):
                running.add(i)
                if report:
                    on_report(i, report)
            else:
                running.discard(i)
        if running & left or not left:
            last_running = time.monotonic()
        elif time.monotonic() - last_running > patience_s:
            raise JobError(
                f"No trial found room within compute.wait_for_resources_s = {patience_s} s, as others hold the "
                f"cluster's CPUs, GPUs or memory, or nodes are gone, or workers do not start (see Ray's logs); free "
                f"some, add nodes or wait, and run the job again."
            )


# Plain tasks.


def _tasks(trials: Sequence[Trial], workers: Workers) -> Looks:
    """Trials as tasks whose results stream."""
    asked = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    options = {asked[kind]: amount for kind, amount in workers.resources.items()}
    task = ray.remote(_run)

    def start(trial: Trial) -> Any:
        named = task.options(name=f"trial {trial.name}", num_returns="streaming", max_retries=0, **options)
        return named.remote(trial.body)

    streams = {i: start(trial) for i, trial in enumerate(trials)}
    attempts = dict.fromkeys(streams, 1)
    failures: list[ray.exceptions.RayError] = []
    while streams:
        ready, _ = ray.wait(list(streams.values()), timeout=LOOK_S)
        events: list[Event] = []
        for i in [i for i, stream in streams.items() if stream in ready]:
            try:
                events.append((i, ray.get(next(streams[i]))))
            except StopIteration:
                del streams[i]
            except ray.exceptions.RayError as error:
                events.append((i, reason_of(error)))
                if attempts[i] < ATTEMPTS:
                    attempts[i], streams[i] = attempts[i] + 1, start(trials[i])
                else:
                    failures.append(error)
                    del streams[i]
        yield events, set(streams)
    raise_first(failures, len(trials))


def _run(body: Body) -> Iterator[Report]:
    yield from body()


def reason_of(error: BaseException) -> str:
    """Why an attempt failed, in one line; the text of an error of a task begins with its traceback."""
    return first_line(getattr(error, "cause", None) or error)


def raise_first(failures: Sequence[object], trials: int) -> None:
    """Raise a RuntimeError with the number of failed trials and the text of the first error, if there is one."""
    if failures:
        raise RuntimeError(f"{len(failures)} of {trials} trials failed; the first: {failures[0]}")
