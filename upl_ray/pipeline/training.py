"""Ensemble members as concurrent trials; a trial trains some members, those of one variant as one batch.

A worker asks Ray for the host memory of a process, the model, all views and the activations of a step. How much that is
changes no result: members, then classes are processed in turn to stay below, which is exact.

Every member keeps its own checkpoint in storage, so a resumed run may group the members differently.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
import torch
import torch.distributed as dist

from upl_ray.cluster import metrics
from upl_ray.cluster.placement import CUDA_HOST_BASE, GIB, HOST_BASE, Node, device_of
from upl_ray.cluster.trials import RUN_MEMORY, Report, Trial, Workers, run_trials
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
from upl_ray.upl.class_shares import ClassShares
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner
from upl_ray.upl.refine import floored

log = logging.getLogger(__name__)

Member = tuple[int, int]  # index of its task, number in the step
LEAST_ACTIVATIONS = 2**26  # bytes that a worker on CPUs has for the activations of a step, in whatever turns
REPORT_INTERVAL_S = 2.5  # between two reports of a trial; Ray Train takes one every 2 s, and a second one waits


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
    variant: str = ""  # for names and metrics
    resources: dict[str, float] = field(default_factory=dict)  # that one worker holds, in Ray's words

    def about(self) -> dict[str, Any]:
        """The facts about its making that a stored prompt records."""
        recipe = self.recipe.model_dump()
        return {"classnames": self.classnames, "weights_sha256": self.spec.weights_sha256, "recipe": recipe}


def train_members(tasks: Sequence[Task], unfinished: Sequence[list[int]], ray_train: bool = False) -> None:
    """Train the unfinished members of some steps, all at once, and declare the steps done.

    Args:
        tasks: the steps, with the same recipe and the same settings of compute.
        unfinished: of each step, the members that are missing in storage.
        ray_train: start trials of one worker through Ray Train, too, and not as plain tasks.

    Raises:
        JobError: no node can hold a trial; or a trial failed three times. Finished members and checkpoints stay, a new
            run goes on from them.
    """
    by_step = {t.step.folder: (t, mine) for t, mine in zip(tasks, unfinished, strict=True)}  # two may be the same
    tasks = [task for task, _ in by_step.values()]
    todo = [(i, m) for i, (_, mine) in enumerate(by_step.values()) for m in mine]
    if todo:
        compute, recipe = tasks[0].compute, tasks[0].recipe
        held = max(held_memory(tasks[i]) for i in {i for i, _ in todo})
        ray_train = ray_train or compute.workers_per_trial > 1
        groups, resources = plan_trials(todo, cluster_nodes(), compute, held, recipe.members if ray_train else None)
        log.info("%-12s %d members in %d concurrent trial(s) of %d", "training", len(todo), len(groups), len(groups[0]))
        tasks = [replace(task, resources=resources) for task in tasks]
        trials = [Trial(name_trial(tasks, group), partial(train_in_turn, tasks, group)) for group in groups]
        on_whole_gpus = device_of(resources.get("GPU", 0.0), compute) == "cuda" and resources["GPU"] >= 1
        workers = Workers(compute.workers_per_trial, resources, ray_train, "nccl" if on_whole_gpus else "gloo")
        progress = TrialProgress(len(trials), recipe.epochs * len(todo))
        run_trials(trials, workers, compute.wait_for_resources_s, progress.add)
        progress.finish()
        missing = [m for task in tasks for m in unfinished_members(task.step, task.recipe)]
        if missing:
            raise JobError(f"Members {missing} are not finished; run the job again to go on from their checkpoints.")
    for task in tasks:
        finish_members(task.step, task.recipe)


# Resources of a trial.


def plan_trials(
    members: Sequence[Any], nodes: Sequence[Node], compute: Compute, held: float, runs: int | None = None
) -> tuple[list[list[Any]], dict[str, float]]:
    """Split the members into as many groups as can run at once, and choose the resources of one worker of a group.

    Args:
        members: all that are to be trained; those of one step lie together, so that each group gets as many of it.
        nodes: of the cluster.
        compute: how the work is spread.
        held: see `held_memory` [bytes].
        runs: the most trials, unless `compute.trials` names another number, where each is a run of Ray Train, whose own
            processes take memory of the driver's node. None: trials are plain tasks.

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
    trials = min(compute.trials or runs or len(members), slots // workers, len(members))
    if runs:
        most = min((int(min(n.memory / RUN_MEMORY, 1e9)) for n in nodes if n.driver), default=trials)
        trials = max(1, min(trials, most))  # the driver's node may be none that works
    while runs and trials > 1 and trials * workers > sum(_slots(_beside(n, trials), gpus, need) for n in nodes):
        trials -= 1
    nodes = [_beside(n, trials) for n in nodes] if runs else nodes
    groups = [list(members[i::trials]) for i in range(trials)]
    resources = {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})
    share = worker_memory(held, trials * workers, nodes, compute)
    return groups, resources | ({} if math.isinf(share) else {"memory": int(share)})


def _beside(node: Node, runs: int) -> Node:
    """A node without the memory of Ray Train's own processes."""
    return replace(node, memory=max(0.0, node.memory - runs * RUN_MEMORY)) if node.driver else node


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


# Trials.


def name_trial(tasks: Sequence[Task], members: Sequence[Member]) -> str:
    """Name of a trial on the dashboard: `upl-star-members-0-to-14-by-2`."""
    parts = []
    for i, task in enumerate(tasks):
        mine = [m for of, m in members if of == i]
        if mine:
            step = mine[1] - mine[0] if len(mine) > 1 else 1
            even = len(mine) > 2 and mine == list(range(mine[0], mine[-1] + 1, step))
            listed = "-".join(map(str, mine[:8])) + f"-and-{len(mine) - 8}-more" * (len(mine) > 8)
            numbers = f"{mine[0]}-to-{mine[-1]}" + f"-by-{step}" * (step > 1) if even else listed
            parts.append(f"{task.variant.replace('*', '-star')}-members-{numbers}")
    return "-".join(parts)


class TrialProgress:
    """Logs finished epochs of all members, and how steps are done.

    Args:
        trials: how many report.
        epochs: that all members are trained together.
    """

    def __init__(self, trials: int, epochs: int) -> None:
        self._progress = Progress("training", epochs, "epochs")
        self._seen = [0] * trials
        self._step_modes: set[str] = set()

    def add(self, trial: int, report: Report) -> None:
        """Take in the report of a trial; one that was started again may be behind an earlier one."""
        step_mode = report.get("step_mode")
        if step_mode and step_mode not in self._step_modes:
            self._step_modes.add(step_mode)
            log.info("%-12s %s", "training", step_mode)
        done = report["member_epochs"]
        self._progress.advance(max(0, done - self._seen[trial]))
        self._seen[trial] = max(done, self._seen[trial])

    def finish(self) -> None:
        """Log the closing line."""
        self._progress.finish()


def on_this_worker(task: Task) -> Task:
    """The task with the resources of a plain Ray task, for groups that are trained without a trial."""
    assigned = ray.get_runtime_context().get_assigned_resources()
    return replace(task, resources={k: v for k, v in assigned.items() if k in ("CPU", "GPU", "memory")})


# Inside of a worker.


def train_in_turn(tasks: Sequence[Task], members: Sequence[Member]) -> Iterator[Report]:
    """Body of a trial: train some members, those of one task as one batch; reports count the epochs of all.

    A trial that is started again does not train again what it has finished.
    """
    before = 0
    yield {}
    for i, task in enumerate(tasks):
        mine = [m for of, m in members if of == i]
        unfinished = shares_of_this_worker(task).of_first(unfinished_members(task.step, task.recipe))
        todo = sorted(set(mine).intersection(unfinished))
        before += task.recipe.epochs * (len(mine) - len(todo))
        if todo:
            for report in train_group(task, todo):
                yield {**report, "member_epochs": before + report["member_epochs"]}
            before += task.recipe.epochs * len(todo)


def train_group(task: Task, members: list[int]) -> Iterator[Report]:
    """Train some members as one batch from their last checkpoints, and write each to storage."""
    device = device_of(task.resources.get("GPU", 0.0), task.compute)
    if device == "cpu":
        torch.set_num_threads(1)  # the same sums in the same order, however many cores the machine has
    shares = shares_of_this_worker(task)
    clip = ClipModel(task.spec, precision="fp32", device=device)
    encoder = PromptEncoder(clip, task.classnames[shares.own], task.recipe.n_ctx)
    features, labels = read_views(task.views, task.selection)
    prior = floored(torch.tensor(estimated_shares(task.prior))) if task.prior else None
    checkpoints = shares.of_first({m: read_checkpoint(task.step, m) for m in members})
    done = 0
    by_epoch = sorted(members, key=lambda m: (checkpoints[m].epoch, m))
    for start, same in itertools.groupby(by_epoch, key=lambda m: checkpoints[m].epoch):
        group = list(same)
        memory = activation_memory(task, device)
        learner = PromptLearner(encoder, features, labels, group, task.recipe, clip.logit_scale, memory, prior, shares)
        if start:
            learner.load_states([checkpoints[m].state for m in group])
        losses = [list(checkpoints[m].losses) for m in group]
        for report in _train_epochs(task, learner, start, losses):
            yield {**report, "member_epochs": done + report["member_epochs"]}
        done += task.recipe.epochs * len(group)


def shares_of_this_worker(task: Task) -> ClassShares:
    """The classes that this worker of Ray Train encodes, or all of them in a plain task."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return ClassShares(len(task.classnames), rank, world)


def _train_epochs(task: Task, learner: PromptLearner, start: int, losses: list[list[float]]) -> Iterator[Report]:
    recipe, last_report = task.recipe, time.monotonic()
    for epoch in range(start, recipe.epochs):
        for history, loss in zip(losses, learner.train_epoch(epoch), strict=True):
            history.append(loss)
        if learner.shares.rank == 0:
            metrics.trained(task.variant, learner.members, [history[-1] for history in losses])
        last = epoch + 1 == recipe.epochs
        if last:
            write_members(task.step, learner, losses, task.about())
        elif (epoch + 1) % recipe.checkpoint_every == 0:
            write_checkpoints(task.step, learner, epoch + 1, losses)
        due = last or time.monotonic() - last_report >= REPORT_INTERVAL_S
        if learner.shares.least(int(due), learner.device):  # all workers of a trial report, or none does
            last_report = time.monotonic()
            loss = sum(h[-1] for h in losses) / len(losses)
            done = (epoch + 1) * len(learner.members)
            yield {"epoch": epoch + 1, "member_epochs": done, "loss": loss, "step_mode": learner.describe_step()}
