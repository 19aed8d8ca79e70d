"""Ensemble members as concurrent trials of Ray Tune; a trial is a group of members trained as one batch.

A trial trains in its own process. With `compute.workers_per_trial` above 1 it starts a Ray Train `TorchTrainer` whose
workers share the trial's members. One worker does without: starting Ray Train inside a trial takes longer than the
whole training of the demo (README, "Ray Train").

Every member keeps its own checkpoint in storage, so a resumed run may group the members differently.
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable
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

from upl_ray import telemetry
from upl_ray.artifacts import Artifact
from upl_ray.clip_model import ClipModel
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Compute, JobError, Train
from upl_ray.members import finish_members, read_checkpoint, unfinished_members, write_checkpoints, write_members
from upl_ray.passes import device_of
from upl_ray.progress import Progress
from upl_ray.prompt_learner import PromptLearner
from upl_ray.text_encoder import TextEncoder
from upl_ray.trials import plan_trials
from upl_ray.views import read_views
from upl_ray.watch import cluster_nodes

log = logging.getLogger(__name__)

TRIAL_DRIVER_CPU = 0.01  # of a trial that only waits for its Ray Train workers; Tune refuses 0
REPORT_INTERVAL_S = 1.0  # between two reports of a trial to Tune, each of which waits for the driver
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Task:
    """What every trial of one step needs."""

    artifact: Artifact
    selection: Artifact
    views: Artifact
    spec: ClipSpec
    classnames: tuple[str, ...]
    recipe: Train
    compute: Compute
    resources: dict[str, float] = field(default_factory=dict)  # of one worker
    trials: int = 1  # that run at once

    def about(self) -> dict[str, Any]:
        """What a stored prompt says about its making."""
        recipe = self.recipe.model_dump()
        return {"classnames": self.classnames, "weights_sha256": self.spec.weights_sha256, "recipe": recipe}


def train_members(task: Task, todo: list[int]) -> Artifact:
    """Train those members that are missing in storage, and declare the step done.

    Raises:
        JobError: a trial failed three times; finished members and checkpoints stay, a new run goes on from them.
    """
    artifact, recipe, compute = task.artifact, task.recipe, task.compute
    if todo:
        groups, resources = plan_trials(todo, cluster_nodes(), compute)
        log.info("%-12s %d members in %d concurrent trial(s) of %d", "training", len(todo), len(groups), len(groups[0]))
        _run_trials(replace(task, resources=resources, trials=len(groups)), groups)
        missing = unfinished_members(artifact, recipe)
        if missing:
            raise JobError(f"Members {missing} are not finished; run the job again to go on from their checkpoints.")
    finish_members(artifact, recipe)
    return artifact


def _run_trials(task: Task, groups: list[list[int]]) -> None:
    resources = task.resources
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer output prints tables even when verbose is 0
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would end the trials, and not the job
    # Ray Tune would copy them from here into the trials' command lines and Ray's logs; every node has its own.
    class_cache.ENV_VARS_TO_PROPAGATE -= {v for v in class_cache.ENV_VARS_TO_PROPAGATE if v.startswith("AWS_")}
    own = (
        {"cpu": TRIAL_DRIVER_CPU}
        if task.compute.workers_per_trial > 1
        else {k.lower(): v for k, v in resources.items()}
    )
    progress = TrialProgress(task.recipe.epochs, sum(map(len, groups)), task.compute.wait_for_resources_s)
    with _records() as folder:
        tuner = tune.Tuner(
            tune.with_resources(partial(run_trial, task), own),
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
    """A folder for what Ray Tune and Ray Train write about themselves, which nobody reads.

    Members and their checkpoints go to storage without Ray's help, so a folder of this machine is enough. In object
    storage Ray would make directory markers and a hundred requests.
    """
    return tempfile.TemporaryDirectory(prefix="upl-trials-", ignore_cleanup_errors=True)


class TrialProgress(tune.Callback):
    """Counts finished epochs of all members on the driver, says once how trials do their steps, and loses patience."""

    def __init__(self, epochs: int, members: int, patience_s: float) -> None:
        self.progress = Progress("training", epochs * members, "epochs")
        self.seen: dict[str, int] = {}
        self.plans: set[str] = set()
        self.starved = ""  # why no trial could run
        self._patience_s, self._last_running = patience_s, time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Tune again and again; stops it when no trial has found room for too long."""
        states = {t.status for t in trials}
        if Trial.RUNNING in states or Trial.PENDING not in states:
            self._last_running = time.monotonic()
        elif time.monotonic() - self._last_running > self._patience_s and not self.starved:
            self.starved = (
                f"No trial found room within compute.wait_for_resources_s = {self._patience_s} s, as others hold the "
                f"cluster's CPUs or GPUs, or nodes are gone; free some, add nodes or wait, and run the job again."
            )
            raise JobError(self.starved)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with each report of a trial."""
        plan = result.get("plan")
        if plan and plan not in self.plans:
            self.plans.add(plan)
            log.info("%-12s %s", "training", plan)
        done = result["member_epochs"]
        self.progress.advance(max(0, done - self.seen.get(trial.trial_id, 0)))
        self.seen[trial.trial_id] = max(done, self.seen.get(trial.trial_id, 0))


def on_this_worker(task: Task) -> Task:
    """The task with what a plain Ray task holds, for groups that are trained without Ray Tune."""
    context = ray.get_runtime_context()
    held = {k: v for k, v in context.get_assigned_resources().items() if k in ("CPU", "GPU")}
    return replace(task, resources=held, trials=max(1, int(ray.cluster_resources().get("CPU", 1))))


def run_trial(task: Task, config: dict[str, Any]) -> None:
    """Body of one Tune trial: train `config["members"]` here, or share them among Ray Train workers."""
    if task.compute.workers_per_trial == 1:
        train_group(task, config["members"], tune.report)
        return
    wait_s = str(task.compute.wait_for_resources_s)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", wait_s)
    with _records() as folder:
        trainer = TorchTrainer(
            partial(train_worker, task),
            train_loop_config={"members": config["members"]},
            scaling_config=ray.train.ScalingConfig(
                num_workers=task.compute.workers_per_trial,
                use_gpu="GPU" in task.resources,
                resources_per_worker=task.resources,
            ),
            run_config=ray.train.RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}-{uuid.uuid4().hex[:8]}",
                storage_path=folder,
                # Without a limit, workers that find no room would be waited for again and again, for ever.
                failure_config=ray.train.FailureConfig(controller_failure_limit=0),  # type: ignore[call-arg]
                callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # Ray documents exactly this use
            ),
        )
        trainer.fit()


def train_worker(task: Task, config: dict[str, Any]) -> None:
    """Body of one Ray Train worker: every n-th member of the trial.

    Workers never wait for each other, so each reports once, at the end, when all of its members are in storage.
    """
    context = ray.train.get_context()
    mine = config["members"][context.get_world_rank() :: context.get_world_size()]
    train_group(task, mine, lambda metrics: None)
    ray.train.report({"member_epochs": task.recipe.epochs * len(config["members"])})


def activation_memory(device: str, trials: int, compute: Compute) -> float:
    """What one worker's activations may take [bytes]: as configured, or else what is safe on its device."""
    if compute.memory_per_trial is not None:
        return compute.memory_per_trial * 2**30
    if device == "cuda":
        return 0.8 * torch.cuda.mem_get_info()[0]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0.5 * machine / trials / compute.workers_per_trial


def train_group(task: Task, members: list[int], report: Report) -> None:
    """Train some members as one batch from their last checkpoints, and write each to storage."""
    device = device_of(task.resources.get("GPU", 0.0), task.compute)
    if device == "cpu":
        torch.set_num_threads(1)  # the same sums in the same order, however many cores the machine has
    clip = ClipModel(task.spec, precision="fp32", device=device)
    encoder = TextEncoder(
        clip, task.classnames, task.recipe.n_ctx, task.recipe.class_position, task.recipe.class_specific
    )
    features, labels = read_views(task.views, task.selection)
    checkpoints = {m: read_checkpoint(task.artifact, m) for m in members}
    done = 0
    by_epoch = sorted(members, key=lambda m: (checkpoints[m].epoch, m))
    for start, same in itertools.groupby(by_epoch, key=lambda m: checkpoints[m].epoch):
        group = list(same)
        memory = activation_memory(device, task.trials, task.compute)
        learner = PromptLearner(encoder, features, labels, group, task.recipe, clip.logit_scale, memory)
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
        telemetry.trained(learner.members, [history[-1] for history in losses])
        done += len(learner.members)
        last = epoch + 1 == recipe.epochs
        if last:
            write_members(task.artifact, learner, losses, task.about())
        elif (epoch + 1) % recipe.checkpoint_every == 0:
            write_checkpoints(task.artifact, learner, epoch + 1, losses)
        if last or time.monotonic() - last_report >= REPORT_INTERVAL_S:
            last_report = time.monotonic()
            loss = sum(h[-1] for h in losses) / len(losses)
            report({"epoch": epoch + 1, "member_epochs": done, "loss": loss, "plan": learner.plan})
    return done
