"""Runs of an experiment as Ray tasks over cached features; each makes one artifact and is not repeated once it exists.

    one task a run (CPU, or a GPU share to learn prompts)    reads features and samples, writes predictions

Shapes: N images, C classes, D feature width, S members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from upl_ray import schema, train
from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.config import Compute
from upl_ray.corpus import Shard
from upl_ray.ensemble import Ensemble
from upl_ray.features import read_features
from upl_ray.footprint import CUDA_HOST_BASE, GIB, HOST_BASE, views_bytes
from upl_ray.label import in_slices
from upl_ray.members import finish_members, read_members, unfinished_members
from upl_ray.passes import Node
from upl_ray.pools import finish_tasks
from upl_ray.watch import cluster_nodes

VERSION = 1  # raise when the same inputs give other predictions
Average = Literal["probabilities", "logits"]


@dataclass(frozen=True)
class Images:
    """Images to classify, in named parts: `scored`, and `corpus` in the transductive setting."""

    features: Artifact
    parts: dict[str, tuple[Shard, ...]]
    dim: int  # of the features, for estimates of memory; no part of the identity

    def identity(self) -> dict[str, Any]:
        """What decides about predictions beside the method."""
        return {"features": self.features.fingerprint, **{p: [s.state for s in x] for p, x in self.parts.items()}}


@dataclass(frozen=True)
class Run:
    """One task: `body` makes `artifacts`."""

    artifacts: tuple[Artifact, ...]
    body: Callable[[], None]
    learns_prompts: bool = False
    memory: Callable[[], int] = int  # beside a bare process [bytes]; asked before it starts, when its inputs are there

    @property
    def done(self) -> bool:
        """True if there is nothing to do."""
        return all(a.manifest() is not None for a in self.artifacts)


def unfinished_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs with something to do, each set of artifacts once, those that learn prompts first: they take longest."""
    todo = {tuple(a.folder for a in r.artifacts): r for r in runs if not r.done}
    return sorted(todo.values(), key=lambda r: not r.learns_prompts)


def run_all(step: str, runs: Sequence[Run], compute: Compute) -> None:
    """Do all unfinished runs, as many at once as the cluster has CPUs, GPUs and memory for.

    Raises:
        RayTaskError: a run failed; finished ones stay, and a new job goes on with the others.
    """
    todo = unfinished_runs(runs)
    if not todo:
        return
    gpus, nodes = gpus_of_prompts(compute), cluster_nodes()
    tasks, needs, most = [], {}, 0
    for run in todo:
        share = gpus if run.learns_prompts else 0.0
        memory = memory_to_ask(run.memory() + (CUDA_HOST_BASE if share else HOST_BASE), share, nodes)
        tasks.append(ray.remote(_call).options(num_cpus=1, num_gpus=share, memory=memory).remote(run.body))
        most = max(most, memory or 0)
    if most:
        needs[f"with {most / GIB:.1f} GiB of memory"] = lambda node: node.memory >= most
    if gpus > 0 and any(r.learns_prompts for r in todo):
        needs["with a GPU"] = lambda node: node.gpus >= 1
    finish_tasks(step, tasks, "runs", compute, needs)


def memory_to_ask(need: float, gpus: float, nodes: Sequence[Node]) -> int | None:
    """Host memory that a task asks Ray for [bytes]; None: nothing, where no node says how much it has.

    It is an estimate, so a task that needs more than any node has runs alone on the largest rather than never.
    """
    largest = max((n.memory for n in nodes if n.cpus >= 1 and n.gpus >= gpus), default=math.inf)
    return None if math.isinf(largest) else int(min(need, largest))


def gpus_of_prompts(compute: Compute) -> float:
    """GPUs of a task that learns prompts, as `train.plan_trials` gives them to a trial."""
    if compute.gpus_per_trial is not None:
        return compute.gpus_per_trial
    return 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def _call(body: Callable[[], None]) -> None:
    torch.set_num_threads(1)  # as many tasks as CPUs run at once
    body()


def prompt_run(
    task: train.Task, images: Images, evaluations: Sequence[tuple[int, Average]]
) -> tuple[Run, tuple[Artifact, ...]]:
    """Train the members of a task, as far as they are missing, and classify with some of them.

    Args:
        task: its selection and views are in storage; its members may be those of the main job.
        images: what is classified.
        evaluations: how many of the members are averaged, and what of them.

    Returns:
        The run, and its artifact for each evaluation.
    """
    artifacts = tuple(
        Artifact(
            task.artifact.store,
            "method",
            fingerprint(
                {
                    "version": VERSION,
                    "members": task.artifact.fingerprint,
                    "count": count,
                    "average": average,
                    **images.identity(),
                }
            ),
        )
        for count, average in evaluations
    )
    body = partial(_learn_and_classify, task, images, evaluations, artifacts)
    return Run(artifacts, body, True, partial(prompt_memory, task)), artifacts


def prompt_memory(task: train.Task) -> int:
    """Host memory of learning prompts beside a bare process [bytes]: the model, twice while it loads, and all views.

    What a step takes is bounded on its own, by `compute.memory_per_trial`.
    """
    views = task.views.manifest()
    assert views is not None, f"{task.views.uri} is unfinished"
    return 2 * task.spec.weights_bytes + views_bytes(views["images"], views["views"], task.spec.dim)


def _learn_and_classify(
    task: train.Task, images: Images, evaluations: Sequence[tuple[int, Average]], artifacts: Sequence[Artifact]
) -> None:
    todo = unfinished_members(task.artifact, task.recipe)
    if todo:
        task = train.on_this_worker(task)
        train.train_group(task, todo, lambda metrics: None)
    finish_members(task.artifact, task.recipe)
    tensors = read_members(task.artifact, task.recipe)
    text_features, ctx = (torch.stack([t[name] for t in tensors]) for name in ("text_features", "ctx"))
    for (count, average), artifact in zip(evaluations, artifacts, strict=True):
        about = {"logit_scale": float(tensors[0]["logit_scale"]), "ensemble": average, "classnames": task.classnames}
        ensemble = Ensemble(text_features[:count], ctx[:count], about)
        n_classes = len(task.classnames)
        files = write_predictions(artifact, images, ensemble.probabilities, n_classes, ensemble.member_labels, count)
        artifact.finish(files=files, members=task.artifact.folder, count=count, average=average)


def write_predictions(
    artifact: Artifact,
    images: Images,
    classify: Callable[[Tensor], Tensor],
    n_classes: int,
    member_labels: Callable[[Tensor], Tensor] | None = None,
    members: int = 0,
) -> dict[str, str]:
    """Label of every image by `classify` ([N, D] -> [N, C]), and by each member alone: a table of each part.

    Returns:
        `files` of the manifest.
    """
    files: dict[str, str] = {}
    for part, shards in images.parts.items():
        tables = []
        for shard in shards:
            ids, image_features = read_features(images.features, shard)
            labels = in_slices(image_features, classify, n_classes).argmax(axis=1).astype(np.int32)
            each = in_slices(image_features, member_labels, members, np.int32) if member_labels else labels[:, None]
            columns = [pa.array(ids, pa.string()), pa.array(labels), pa.array(list(each), pa.list_(pa.int32()))]
            tables.append(pa.table(columns, schema=schema.VOTES))
        files |= artifact.write_file(f"{part}.parquet", pa.concat_tables(tables))
    return files


def read_predictions(artifact: Artifact, part: str, ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Labels of these images [N, 1 + S]: the method's own, then each member's."""
    table = artifact.read_table(f"{part}.parquet")
    row = {image_id: i for i, image_id in enumerate(table["image_id"].to_pylist())}
    members = np.asarray(table["member_labels"].combine_chunks().flatten()).reshape(len(table), -1)
    labels = np.concatenate([table["label"].to_numpy()[:, None], members], axis=1)
    return labels[[row[i] for i in ids]]
