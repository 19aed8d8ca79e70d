"""Ensemble members as concurrent trials of Ray Tune; a trial trains some members of each variant, as one batch each.

A trial trains in its own process. With `compute.workers_per_trial` above 1 it starts a Ray Train `TorchTrainer` whose
workers share the trial's members. One worker does without: starting Ray Train inside a trial takes longer than the
whole training of the demo (README, "Ray Train").

A worker asks Ray for the host memory of a process, the model, all views and the activations of a step. How much that is
changes no result: members, then classes are processed in turn to stay below, which is exact.

Every member keeps its own checkpoint in storage, so a resumed run may group the members differently.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback

from upl_ray.cluster import metrics
from upl_ray.cluster.placement import CUDA_HOST_BASE, GIB, HOST_BASE, Node, device_of
from upl_ray.cluster.watch import cluster_nodes
from upl_ray.config.settings import Compute, Train
from upl_ray.errors import JobError
from upl_ray.pipeline.members import (
    finish_members,
    read_checkpoint,
    unfinished_members,
    write_checkpoints,
    write_members,
)
from upl_ray.pipeline.refinement import estimated_shares
from upl_ray.pipeline.views import read_views, views_bytes
from upl_ray.progress import Progress
from upl_ray.storage.step import Step
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner
from upl_ray.upl.refine import floored

log = logging.getLogger(__name__)

Member = tuple[int, int]  # index of its task, number in the step
TRAIN_WORKER_CPU = 0.9  # leaves room for the trial's driver: whole CPUs for all workers would wait without end
TRIAL_DRIVER_CPU = 0.01  # of a trial that only waits for its Ray Train workers; Tune refuses 0
LEAST_ACTIVATIONS = 2**26  # bytes that a worker on CPUs has for the activations of a step, in whatever turns
REPORT_INTERVAL_S = 1.0  # between two reports of a trial to Tune, each of which waits for the driver
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Task:
    """The inputs of every trial of one step."""

    step: Step
    selection: Step
    views: Step
    spec: ClipSpec
    classnames: tuple[str, ...]
    recipe: Train
    compute: Compute
    prior: Step | None = None  # the refinement whose class shares the members are learned beside
    resources: dict[str, float] = field(default_factory=dict)  # that one worker holds, in Ray's words

    def about(self) -> dict[str, Any]:
        """The facts about its making that a stored prompt records."""
        recipe = self.recipe.model_dump()
        return {"classnames": self.classnames, "weights_sha256": self.spec.weights_sha256, "recipe": recipe}


def train_members(tasks: Sequence[Task], unfinished: Sequence[list[int]]) -> None:
    """Train the unfinished members of some steps, all at once, and declare the steps done.

    Args:
        tasks: the steps, with the same recipe and the same settings of compute.
        unfinished: of each step, the members that are missing in storage.

    Raises:
        JobError: no node can hold a trial; or a trial failed three times. Finished members and checkpoints stay, a new
            run goes on from them.
    """
    by_step = {
        task.step.folder: (task, mine) for task, mine in zip(tasks, unfinished, strict=True)
    }  # they may be equal
    tasks = [task for task, _ in by_step.values()]
    todo = [(i, m) for i, (_, mine) in enumerate(by_step.values()) for m in mine]
    if todo:
        held = max(held_memory(tasks[i]) for i in {i for i, _ in todo})
        groups, resources = plan_trials(todo, cluster_nodes(), tasks[0].compute, held)
        log.info("%-12s %d members in %d concurrent trial(s) of %d", "training", len(todo), len(groups), len(groups[0]))
        _run_trials([replace(task, resources=resources) for task in tasks], groups)
        missing = [m for task in tasks for m in unfinished_members(task.step, task.recipe)]
        if missing:
            raise JobError(f"Members {missing} are not finished; run the job again to go on from their checkpoints.")
    for task in tasks:
        finish_members(task.step, task.recipe)


# Resources of a trial.


def plan_trials(
    members: Sequence[Any], nodes: Sequence[Node], compute: Compute, held: float
) -> tuple[list[list[Any]], dict[str, float]]:
    """Split the members into as many groups as can run at once, and choose the resources of one worker of a group.

    Args:
        members: all that are to be trained; those of one step lie together, so that each group gets as many of it.
        nodes: of the cluster.
        compute: how the work is spread.
        held: see `held_memory` [bytes].

    Raises:
        JobError: no node, or not enough of them, can hold the workers of one trial.
    """
    gpus, workers = gpus_of_worker(nodes, compute), compute.workers_per_trial
    need = _least_memory(held, gpus, compute)
    slots = sum(_slots(n, gpus, need) for n in nodes)
    kind = f"{gpus:g} GPU(s) and a CPU" if gpus else "a CPU"
    memory = f"{need / GIB:.1f} GiB of memory (for a process, the model, all views and activations)"
    if slots == 0:
        raise JobError(
            f"A trial needs a node with {kind} and {memory}, and none of the cluster's {len(nodes)} node(s) is one at "
            f"present; start one, or lower compute.gpus_per_trial, compute.memory_per_trial or views.count."
        )
    if workers > slots:
        raise JobError(
            f"compute.workers_per_trial is {workers}, but the cluster has room for {slots} workers of {kind} and "
            f"{memory} each; lower it or add nodes."
        )
    trials = min(compute.trials or len(members), max(1, slots // workers), len(members))
    groups = [list(members[i::trials]) for i in range(trials)]
    resources = {"CPU": 1.0 if workers == 1 else TRAIN_WORKER_CPU} | ({"GPU": gpus} if gpus else {})
    share = worker_memory(held, trials * workers, nodes, compute)
    return groups, resources | ({} if math.isinf(share) else {"memory": int(share)})


def gpus_of_worker(nodes: Sequence[Node], compute: Compute) -> float:
    """GPUs of one worker: `compute.gpus_per_trial`, or else one if there are any."""
    if compute.gpus_per_trial is not None:
        return compute.gpus_per_trial
    return 1.0 if any(n.gpus >= 1 for n in nodes) else 0.0


def held_memory(task: Task) -> int:
    """Host memory of learning prompts beside a bare process [bytes]: the model, twice while it loads, and all views."""
    views = task.views.manifest()
    targets: int = 4 * views["images"] * views.get("soft_classes", 0)
    return 2 * task.spec.weights_bytes + views_bytes(views["images"], views["views"], task.spec.dim) + targets


def worker_memory(held: float, workers: int, nodes: Sequence[Node], compute: Compute) -> float:
    """Host memory that each of some concurrent workers asks Ray for [bytes]; infinite if no node has a limit.

    A worker on CPUs without `compute.memory_per_trial` gets half of its share of the node for activations, or what is
    left of that share. What Ray reports of a node is within the limit of its container.
    """
    if all(math.isinf(n.memory) for n in nodes):
        return math.inf
    gpus = gpus_of_worker(nodes, compute)
    need = _least_memory(held, gpus, compute)
    if compute.memory_per_trial is not None or device_of(gpus, compute) == "cuda":
        return need
    slots = [(n.memory, _slots(n, gpus, need)) for n in nodes]
    share = min((memory / min(workers, count) for memory, count in slots if count), default=need)
    return min(share, need + share / 2)


def activation_memory(task: Task, device: str) -> float:
    """Bound on the activations of one worker's step [bytes]: as configured, or else what its device has left for it."""
    if task.compute.memory_per_trial is not None:
        return task.compute.memory_per_trial * GIB
    if device == "cuda":
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # of the variant that was trained before
        return 0.8 * (torch.cuda.mem_get_info()[0] + cached)
    return max(LEAST_ACTIVATIONS, task.resources.get("memory", math.inf) - HOST_BASE - held_memory(task))


def _least_memory(held: float, gpus: float, compute: Compute) -> float:
    """Host memory without which a worker cannot run [bytes]."""
    if device_of(gpus, compute) == "cuda":
        return CUDA_HOST_BASE + held
    configured = compute.memory_per_trial
    return HOST_BASE + held + (LEAST_ACTIVATIONS if configured is None else configured * GIB)


def _slots(node: Node, gpus: float, memory: float) -> int:
    """Workers that one node can hold at once; a GPU's share lies on one GPU, whole ones may be several."""
    on_gpus = int(node.gpus) * int(1 / gpus + 1e-6) if 0 < gpus <= 1 else int(node.gpus / gpus) if gpus else int(1e9)
    return min(int(node.cpus), on_gpus, int(min(node.memory / memory, 1e9)))


# Trials in Ray Tune.


def _run_trials(tasks: list[Task], groups: list[list[Member]]) -> None:
    compute, resources = tasks[0].compute, tasks[0].resources
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer output prints tables even when verbose is 0
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would end the trials, and not the job
    # Ray Tune would copy them from here into the trials' command lines and Ray's logs; every node has its own.
    class_cache.ENV_VARS_TO_PROPAGATE -= {v for v in class_cache.ENV_VARS_TO_PROPAGATE if v.startswith("AWS_")}
    own = {"cpu": TRIAL_DRIVER_CPU} if compute.workers_per_trial > 1 else {k.lower(): v for k, v in resources.items()}
    progress = TrialProgress(tasks[0].recipe.epochs, sum(map(len, groups)), compute.wait_for_resources_s)
    with _records() as folder:
        tuner = tune.Tuner(
            tune.with_resources(partial(run_trial, tasks), own),
            param_space={"members": tune.grid_search(groups)},
            tune_config=tune.TuneConfig(max_concurrent_trials=len(groups)),
            run_config=tune.RunConfig(
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[progress],
                verbose=0,
            ),
        )
        results = tuner.fit()
    if progress.starved:
        raise JobError(progress.starved)
    progress.progress.finish()
    if results.errors:
        raise RuntimeError(f"{len(results.errors)} of {len(groups)} trials failed; the first: {results.errors[0]}")


def _records() -> tempfile.TemporaryDirectory[str]:
    """A folder for the records of Ray Tune and Ray Train about themselves, which nobody reads.

    Members and their checkpoints go to storage without Ray's help, so a folder of this machine is enough. In object
    storage Ray would make directory markers and a hundred requests.
    """
    return tempfile.TemporaryDirectory(prefix="upl-trials-", ignore_cleanup_errors=True)


class TrialProgress(tune.Callback):
    """Logs finished epochs of all members and how steps are done, and stops when no trial finds room for too long."""

    def __init__(self, epochs: int, members: int, patience_s: float) -> None:
        self.progress = Progress("training", epochs * members, "epochs")
        self.seen: dict[str, int] = {}
        self.step_modes: set[str] = set()
        self.starved = ""  # why no trial could run
        self._patience_s, self._last_running = patience_s, time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Tune in every round; stops it when no trial has found room for too long."""
        states = {t.status for t in trials}
        if Trial.RUNNING in states or Trial.PENDING not in states:
            self._last_running = time.monotonic()
        elif time.monotonic() - self._last_running > self._patience_s and not self.starved:
            self.starved = (
                f"No trial found room within compute.wait_for_resources_s = {self._patience_s} s, as others hold the "
                f"cluster's CPUs, GPUs or memory, or nodes are gone; free some, add nodes or wait, and run the job "
                f"again."
            )
            raise JobError(self.starved)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with each report of a trial."""
        step_mode = result.get("step_mode")
        if step_mode and step_mode not in self.step_modes:
            self.step_modes.add(step_mode)
            log.info("%-12s %s", "training", step_mode)
        done = result["member_epochs"]
        self.progress.advance(max(0, done - self.seen.get(trial.trial_id, 0)))
        self.seen[trial.trial_id] = max(done, self.seen.get(trial.trial_id, 0))


def on_this_worker(task: Task) -> Task:
    """The task with the resources of a plain Ray task, for groups that are trained without Ray Tune."""
    assigned = ray.get_runtime_context().get_assigned_resources()
    return replace(task, resources={k: v for k, v in assigned.items() if k in ("CPU", "GPU", "memory")})


def run_trial(tasks: list[Task], config: dict[str, Any]) -> None:
    """Body of one Tune trial: train `config["members"]` here, or share them among Ray Train workers."""
    compute, resources = tasks[0].compute, tasks[0].resources
    if compute.workers_per_trial == 1:
        train_in_turn(tasks, config["members"], tune.report)
        return
    wait_s = str(compute.wait_for_resources_s)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", wait_s)
    with _records() as folder:
        trainer = TorchTrainer(
            partial(train_worker, tasks),
            train_loop_config={"members": config["members"]},
            scaling_config=ray.train.ScalingConfig(
                num_workers=compute.workers_per_trial,
                use_gpu="GPU" in resources,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                # Without a limit, workers that find no room would be waited for without end.
                failure_config=ray.train.FailureConfig(controller_failure_limit=0),  # type: ignore[call-arg]
                callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # Ray documents exactly this use
            ),
        )
        trainer.fit()


def train_worker(tasks: list[Task], config: dict[str, Any]) -> None:
    """Body of one Ray Train worker: every n-th member of the trial.

    Workers never wait for each other, so each reports once, at the end, when all of its members are in storage.
    """
    context = ray.train.get_context()
    mine = config["members"][context.get_world_rank() :: context.get_world_size()]
    train_in_turn(tasks, mine, lambda metrics: None)
    ray.train.report({"member_epochs": tasks[0].recipe.epochs * len(config["members"])})


def train_in_turn(tasks: list[Task], members: Sequence[Member], report: Report) -> None:
    """Train some members, those of one task as one batch; reports count the epochs of all.

    A trial that is tried again does not train again what it has finished.
    """
    before = 0
    for i, task in enumerate(tasks):
        mine = [m for of, m in members if of == i]
        todo = sorted(set(mine).intersection(unfinished_members(task.step, task.recipe)))
        before += task.recipe.epochs * (len(mine) - len(todo))
        if todo:
            train_group(task, todo, partial(_report_after, before, report))
            before += task.recipe.epochs * len(todo)


def _report_after(before: int, report: Report, metrics: dict[str, Any]) -> None:
    report({**metrics, "member_epochs": before + metrics["member_epochs"]})


def train_group(task: Task, members: list[int], report: Report) -> None:
    """Train some members as one batch from their last checkpoints, and write each to storage."""
    device = device_of(task.resources.get("GPU", 0.0), task.compute)
    if device == "cpu":
        torch.set_num_threads(1)  # the same sums in the same order, however many cores the machine has
    clip = ClipModel(task.spec, precision="fp32", device=device)
    encoder = PromptEncoder(clip, task.classnames, task.recipe.n_ctx)
    features, labels = read_views(task.views, task.selection)
    prior = floored(torch.tensor(estimated_shares(task.prior))) if task.prior else None
    checkpoints = {m: read_checkpoint(task.step, m) for m in members}
    done = 0
    by_epoch = sorted(members, key=lambda m: (checkpoints[m].epoch, m))
    for start, same in itertools.groupby(by_epoch, key=lambda m: checkpoints[m].epoch):
        group = list(same)
        memory = activation_memory(task, device)
        learner = PromptLearner(encoder, features, labels, group, task.recipe, clip.logit_scale, memory, prior)
        if start:
            learner.load_states([checkpoints[m].state for m in group])
        losses = [list(checkpoints[m].losses) for m in group]
        done = _train_epochs(task, learner, start, losses, done, report)


def _train_epochs(
    task: Task, learner: PromptLearner, start: int, losses: list[list[float]], done: int, report: Report
) -> int:
    recipe, last_report = task.recipe, time.monotonic()
    done += start * len(learner.members)
    for epoch in range(start, recipe.epochs):
        for history, loss in zip(losses, learner.train_epoch(epoch), strict=True):
            history.append(loss)
        metrics.trained(learner.members, [history[-1] for history in losses])
        done += len(learner.members)
        last = epoch + 1 == recipe.epochs
        if last:
            write_members(task.step, learner, losses, task.about())
        elif (epoch + 1) % recipe.checkpoint_every == 0:
            write_checkpoints(task.step, learner, epoch + 1, losses)
        if last or time.monotonic() - last_report >= REPORT_INTERVAL_S:
            last_report = time.monotonic()
            loss = sum(h[-1] for h in losses) / len(losses)
            report({"epoch": epoch + 1, "member_epochs": done, "loss": loss, "step_mode": learner.describe_step()})
    return done
