"""Runs of a study as Ray tasks over cached features; each makes its steps and is not repeated once they exist.

    one task a run (CPU, or a GPU share to learn prompts)    reads features and samples, writes predictions

Shapes: N images, n labeled images, m validation images, V views, C classes, D feature width, S members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch

from upl_ray.cluster.actors import finish_tasks
from upl_ray.cluster.placement import GIB, HOST_BASE, Node
from upl_ray.cluster.watch import cluster_nodes
from upl_ray.config.settings import Compute, Train
from upl_ray.corpus.shards import Shard
from upl_ray.pipeline import training as train
from upl_ray.pipeline.features import read_features
from upl_ray.pipeline.members import finish_members, read_members, unfinished_members
from upl_ray.pipeline.refinement import estimated_shares
from upl_ray.pipeline.shardwise import apply_in_slices, classify_in_slices
from upl_ray.pipeline.text import read_text_features
from upl_ray.pipeline.views import read_views, views_bytes
from upl_ray.storage import schema
from upl_ray.storage.step import Step
from upl_ray.studies.methods import clip_adapter, linear_probe, tip_adapter
from upl_ray.studies.methods.few_shot import FewShot, Fitted
from upl_ray.studies.samples import read_gathered, read_samples
from upl_ray.upl.ensemble import Ensemble, Mixture
from upl_ray.upl.metrics import Labels
from upl_ray.upl.refine import floored

Average = Literal["probabilities", "logits"]
LabelImages = Callable[[npt.NDArray[np.float16], str], tuple[Labels, Labels]]
# How frequent classes are among the images of a field, for prompts that were learned beside the corpus' class shares.
MIXTURES: dict[str, Mixture] = {"scored": "even", "corpus": "corpus"}
FEW_SHOT_VERSIONS = {
    "linear-probe": linear_probe.VERSION,
    "clip-adapter": clip_adapter.VERSION,
    "tip-adapter": tip_adapter.VERSION,
    "tip-adapter-f": tip_adapter.VERSION,
}
MOST_VIEWS = {"linear-probe": 0, "tip-adapter": tip_adapter.KEY_VIEWS}  # of an image that a method reads; else all


@dataclass(frozen=True)
class ImagesToClassify:
    """The images of each run: those of the field `scored`, and of `corpus` in the transductive setting."""

    features: Step
    shards: dict[str, tuple[Shard, ...]]  # by field
    dim: int  # of the features, for estimates of memory; no part of the identity

    def identity(self) -> dict[str, Any]:
        """The inputs of predictions beside the method."""
        return {"features": self.features.fingerprint, **{f: [s.state for s in x] for f, x in self.shards.items()}}


@dataclass(frozen=True)
class Run:
    """One task: `body` makes `steps`."""

    steps: tuple[Step, ...]
    body: Callable[[], None]
    learns_prompts: bool = False
    memory: Callable[[], int] = int  # beside a bare process [bytes]; called when its inputs are finished

    @property
    def done(self) -> bool:
        """True if there is nothing to do."""
        return all(a.finished for a in self.steps)


def unfinished_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs with something to do, each set of steps once, those that learn prompts first: they take longest."""
    todo = {tuple(a.folder for a in r.steps): r for r in runs if not r.done}
    return sorted(todo.values(), key=lambda r: not r.learns_prompts)


def run_all(label: str, runs: Sequence[Run], compute: Compute) -> None:
    """Do all unfinished runs, as many at once as the cluster has CPUs, GPUs and memory for; `label` is of log lines.

    Raises:
        JobError: a run raised one; finished runs stay, and a new job does the others.
    """
    todo = unfinished_runs(runs)
    if not todo:
        return
    nodes = cluster_nodes()
    gpus, learners = train.gpus_of_worker(nodes, compute), sum(r.learns_prompts for r in todo)
    tasks, needs, most = [], {}, 0
    for run in todo:
        share, held = (gpus if run.learns_prompts else 0.0), run.memory()
        need = train.worker_memory(held, learners, nodes, compute) if run.learns_prompts else held + HOST_BASE
        memory = memory_to_ask(need, share, nodes)
        tasks.append(ray.remote(_call).options(num_cpus=1, num_gpus=share, memory=memory).remote(run.body))
        most = max(most, memory or 0)
    if most:
        needs[f"with {most / GIB:.1f} GiB of memory"] = lambda node: node.memory >= most
    if gpus > 0 and any(r.learns_prompts for r in todo):
        needs["with a GPU"] = lambda node: node.gpus >= 1
    finish_tasks(label, tasks, "runs", compute, needs)


def memory_to_ask(need: float, gpus: float, nodes: Sequence[Node]) -> int | None:
    """Host memory that a task asks Ray for [bytes]; None where a node that may serve it declares no limit.

    `need` is an estimate, so a task that needs more than any node has runs alone on the largest rather than never.
    """
    largest = max((n.memory for n in nodes if n.cpus >= 1 and n.gpus >= gpus), default=math.inf)
    return None if math.isinf(largest) else int(min(need, largest))


def _call(body: Callable[[], None]) -> None:
    torch.set_num_threads(1)  # as many tasks as CPUs run at once
    body()


# Learned prompts.


def prompt_run(task: train.Task, images: ImagesToClassify, evaluations: Sequence[tuple[int, Average]]) -> Run:
    """Train the members of a task, as far as they are missing, and classify with some of them.

    Args:
        task: its selection and views are in storage; its members may be those of the main job.
        images: to be classified.
        evaluations: how many of the members are averaged, and whether their probabilities or logits are.

    Returns:
        The run, with a step for each evaluation.
    """
    steps = tuple(
        Step.of(
            task.step.store,
            "method",
            version=3,
            inputs={"count": count, "average": average, **images.identity()},
            needs=[task.step],
        )
        for count, average in evaluations
    )
    body = partial(_learn_and_classify, task, images, evaluations, steps)
    return Run(steps, body, True, partial(train.held_memory, task))


def _learn_and_classify(
    task: train.Task, images: ImagesToClassify, evaluations: Sequence[tuple[int, Average]], steps: Sequence[Step]
) -> None:
    todo = unfinished_members(task.step, task.recipe)
    if todo:
        task = train.on_this_worker(task)
        for _ in train.train_group(task, todo):
            pass
    finish_members(task.step, task.recipe)
    tensors = read_members(task.step, task.recipe)
    text_features, ctx = (torch.stack([t[name] for t in tensors]) for name in ("text_features", "ctx"))
    for (count, average), step in zip(evaluations, steps, strict=True):
        about: dict[str, Any] = {"logit_scale": float(tensors[0]["logit_scale"]), "ensemble": average}
        about["classnames"] = task.classnames
        if task.prior:
            about["class_shares"] = floored(torch.tensor(estimated_shares(task.prior))).tolist()
        ensemble = Ensemble(text_features[:count], ctx[:count], about)
        files = write_predictions(step, images, partial(_label_by_ensemble, ensemble=ensemble))
        step.finish(files=files, members=task.step.folder, count=count, average=average)


def _label_by_ensemble(features: npt.NDArray[np.float16], field: str, ensemble: Ensemble) -> tuple[Labels, Labels]:
    probabilities, member_labels = classify_in_slices(features, ensemble, MIXTURES[field])
    return probabilities.argmax(axis=1), member_labels


# Methods that are fitted to a few labeled images.


@dataclass(frozen=True)
class FewShotSteps:
    """The steps that a method with labels reads."""

    shots: Step  # selection
    views: Step  # of the shots
    validation: Step  # selection
    gathered: Step  # features of both
    text: Step


def few_shot_run(
    method: str, steps: FewShotSteps, images: ImagesToClassify, recipe: Train, search: tip_adapter.Search
) -> Run:
    """Fit a method with labels and classify with it.

    Args:
        method: a key of `FEW_SHOT_VERSIONS`.
        steps: finished before the run starts.
        images: to be classified.
        recipe: seeds the method; CLIP-Adapter is trained by it.
        search: of Tip-Adapter.
    """
    settings = {"clip-adapter": recipe.model_dump(), "tip-adapter": asdict(search), "tip-adapter-f": asdict(search)}
    inputs = {
        "fit": FEW_SHOT_VERSIONS[method],
        "method": method,
        "recipe": settings.get(method),
        "seed": recipe.seed if method in ("clip-adapter", "tip-adapter-f") else None,
        # Not the gathered features: they are a copy.
        "samples": {name: s.fingerprint for name, s in vars(steps).items() if name != "gathered"},
        **images.identity(),
    }
    step = Step.of(steps.shots.store, "method", version=2, inputs=inputs)
    body = partial(_fit_and_classify, method, steps, images, recipe, search, step)
    return Run((step,), body, memory=partial(few_shot_memory, method, steps, images.dim))


def few_shot_memory(method: str, steps: FewShotSteps, dim: int) -> int:
    """Host memory of a method with labels beside a bare process [bytes]: views, features, Tip-Adapter's affinities."""
    shots, validation, gathered = (s.manifest()["images"] for s in (steps.shots, steps.validation, steps.gathered))
    views = steps.views.manifest()["views"]
    view_features = views_bytes(shots, min(views, MOST_VIEWS.get(method, views)), dim)
    features = 2 * views_bytes(gathered, 1, dim)  # the file and what it is read into
    affinities = 2 * 4 * shots * validation if method.startswith("tip-adapter") else 0
    return view_features + features + affinities


def _fit_and_classify(
    method: str, steps: FewShotSteps, images: ImagesToClassify, recipe: Train, search: tip_adapter.Search, step: Step
) -> None:
    data = read_few_shot(steps, MOST_VIEWS.get(method))
    fitted = fit(method, data, recipe, search)
    files = write_predictions(step, images, partial(_label_by_fitted, fitted=fitted, n_classes=len(data.text_features)))
    counts = {"shots": len(data.labels), "validation": len(data.validation_labels)}
    step.finish(files=files, method=method, chosen=fitted.chosen, **counts)


def _label_by_fitted(
    features: npt.NDArray[np.float16], field: str, fitted: Fitted, n_classes: int
) -> tuple[Labels, Labels]:
    labels = apply_in_slices(features, fitted.logits, n_classes).argmax(axis=1)
    return labels, labels[:, None]  # the method is its only member


def fit(method: str, data: FewShot, recipe: Train, search: tip_adapter.Search) -> Fitted:
    """Fit a method by its name; see `few_shot_run`."""
    if method == "linear-probe":
        return linear_probe.linear_probe(data)
    if method == "clip-adapter":
        return clip_adapter.clip_adapter(data, recipe)
    if method == "tip-adapter":
        return tip_adapter.tip_adapter(data, search)
    return tip_adapter.tip_adapter_f(data, recipe.seed, search)


def read_few_shot(steps: FewShotSteps, most_views: int | None = None) -> FewShot:
    """Everything that a method with labels may see, images in the order of ids; without a limit all their views."""
    features = torch.from_numpy(read_gathered(steps.gathered, steps.shots)).float()
    no_views = torch.empty(len(features), 0, features.shape[1], dtype=torch.float16)
    text_features, logit_scale = read_text_features(steps.text)
    return FewShot(
        features=features,
        views=no_views if most_views == 0 else read_views(steps.views, steps.shots, most_views)[0],
        labels=torch.tensor(list(read_samples(steps.shots).values())),
        validation_features=torch.from_numpy(read_gathered(steps.gathered, steps.validation)).float(),
        validation_labels=torch.tensor(list(read_samples(steps.validation).values())),
        text_features=text_features,
        logit_scale=logit_scale,
    )


# Predictions.


def write_predictions(step: Step, images: ImagesToClassify, label_images: LabelImages) -> dict[str, str]:
    """Write labels of all images, one table for each field.

    Args:
        step: where the tables go.
        images: to be classified.
        label_images: features [N, D] of a field -> labels by the method [N], and by each of its members alone [N, S].

    Returns:
        `files` of the manifest.
    """
    files: dict[str, str] = {}
    for field, shards in images.shards.items():
        tables = []
        for shard in shards:
            ids, image_features = read_features(images.features, shard)
            labels, member_labels = label_images(image_features, field)
            columns = [pa.array(ids, pa.string()), labels.astype(np.int32), list(member_labels.astype(np.int32))]
            tables.append(pa.table(columns, schema=schema.VOTES))
        files |= step.write_file(f"{field}.parquet", pa.concat_tables(tables))
    return files


def read_predictions(step: Step, field: str, ids: Sequence[str]) -> npt.NDArray[np.int32]:
    """Labels of these images [N, 1 + S]: the method's own, then each member's."""
    table = step.read_table(f"{field}.parquet")
    row = {image_id: i for i, image_id in enumerate(table["image_id"].to_pylist())}
    members = np.asarray(table["member_labels"].combine_chunks().flatten()).reshape(len(table), -1)
    labels = np.concatenate([table["label"].to_numpy()[:, None], members], axis=1)
    return labels[[row[i] for i in ids]]
