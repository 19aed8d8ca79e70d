"""Ablations of the configured run over cached features: one change at a time, and every selection by both labels.

features -> pseudo-labels of every set of labelers -> selections -> one view bank -> points x seeds -> table
         -> refinements by every recipe -> samples and targets -----------^

Points that train alike train once: members and what is averaged over them are read off the same prompts.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from upl_ray.cluster.connect import RayCluster
from upl_ray.config.settings import Config, Train
from upl_ray.pipeline.inputs import check_context
from upl_ray.pipeline.main import select_images
from upl_ray.pipeline.scores import score_selection
from upl_ray.pipeline.selection import read_selection, selection_step
from upl_ray.pipeline.training import Task
from upl_ray.pipeline.view_bank import share_views
from upl_ray.storage.step import Step
from upl_ray.studies.plots import plot_ablation
from upl_ray.studies.runs import Average, Run, prompt_run, read_predictions, run_all, unfinished_runs
from upl_ray.studies.samples import write_above_threshold
from upl_ray.studies.study import (
    Lesson,
    Study,
    classified_fields,
    finish_study,
    label_identity,
    open_study,
    prompt_task,
    read_true_labels,
    study_inputs,
    write_table,
)
from upl_ray.studies.table import difference, difference_text, spread, spread_text
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.metrics import Labels

T = TypeVar("T", int, float, str, bool)

COLUMNS = (
    *("factor", "value", "accuracy", "vs configured [95 %]", "single prompt", "transductive"),
    *("label precision", "images", "fewest a class", "most a class"),
)
# Factors of refined labels, and the field of `ablate` and `refine` that each varies; the first has the configured run.
REFINED = {
    "refined: beta": "beta",
    "refined: images of the fit": "sample_per_class",
    "refined: images learned": "train_per_class",
    "refined: targets": "targets",
    "refined: logit adjustment": "adjust",
}


@dataclass(frozen=True)
class Point:
    """One configuration of the method; `factor` and `value` say what differs from the configured one."""

    factor: str
    value: str
    lesson: Lesson
    recipe: Train
    members: int
    average: Average
    refined: bool = False  # held against the configured refined labels instead of the configured top-K


@dataclass(frozen=True)
class Trained:
    """A point's predictions, one step a seed."""

    point: Point
    steps: tuple[Step, ...]


def ablate(config: Config) -> dict[str, Any]:
    """Run what is missing, write table and plots to storage and return a summary.

    Raises:
        ConfigError: a class name does not fit beside one of `ablate.n_ctx`, or see `studies.study_inputs`.
        JobError: see `studies.open_study`.
    """
    started = time.monotonic()
    cluster = RayCluster(config.compute)
    inputs = study_inputs(config, cluster)
    for n in config.ablate.n_ctx:
        recipe = config.train.model_copy(update={"n_ctx": n})
        check_context(inputs.target, inputs.classnames, recipe, f"drop {n} from ablate.n_ctx")
    with cluster.watched():
        study = open_study(inputs, cluster)
        step = write_ablation(study, _run_points(study))
    return finish_study(study, step, ablation_cells(step.manifest()["rows"]), started)


def _run_points(study: Study) -> list[Trained]:
    """Make the predictions of every point and seed, as far as they are missing."""
    points = [p for p in points_of(study) if p.lesson.selection.manifest()["images"]]
    lessons = [p.lesson for p in points]
    share_views(study.inputs, [(x.selection, x.crops) for x in lessons if x.crops], study.cluster)
    runs, trained = runs_of_points(study, points)
    if unfinished_runs(runs):
        study.cluster.start("ablation")
        run_all("ablation", runs, study.inputs.config.compute)
    return trained


def points_of(study: Study) -> Iterator[Point]:
    """The points of every factor, the configured one among them."""
    inputs, config, grid = study.inputs, study.inputs.config, study.inputs.config.ablate
    everyone, own = inputs.labelers("upl*"), [inputs.target]
    top = study.lesson(_top_k(study, everyone))
    base = Point("", "", top, config.train, config.train.members, config.train.ensemble)
    for k in _with_configured(grid.top_k, config.label.top_k):
        yield replace(base, factor="top-K", value=str(k), lesson=study.lesson(_top_k(study, everyone, k)))
    for labelers, name in [(own, "own"), (everyone, "fused")][: len(everyone)]:
        kinds = {"top-K": study.lesson(_top_k(study, labelers))}
        kinds |= {f"≥ {x:g}": study.lesson(_above(study, labelers, x)) for x in grid.thresholds}
        kinds["refined"] = study.refined_lesson(labelers, config.refine)
        for kind, lesson in kinds.items():
            yield replace(base, factor="selection", value=f"{kind}, {name}", lesson=lesson)
    for labelers in labelers_of(study):
        fused = len(labelers) == len(everyone) > 1
        names = "all fused" if fused else "+".join(s.name for s in labelers)
        yield replace(base, factor="labels", value=names, lesson=study.lesson(_top_k(study, labelers)))
    for n in _with_configured(grid.n_ctx, config.train.n_ctx):
        recipe = config.train.model_copy(update={"n_ctx": n})
        yield replace(base, factor="context length", value=str(n), recipe=recipe)
    for v in _with_configured(grid.views, config.views.count):
        lesson = study.lesson(top.selection, config.views.model_copy(update={"count": v}))
        yield replace(base, factor="views", value=str(v), lesson=lesson)
    for m in _with_configured(grid.members, config.train.members):
        yield replace(base, factor="members", value=str(m), members=m)
    averages: tuple[Average, ...] = ("probabilities", "logits")
    for average in averages:
        yield replace(base, factor="averaged", value=average, average=average)
    for factor, field in REFINED.items():
        for value in _with_configured(getattr(grid, field), getattr(config.refine, field)):
            lesson = study.refined_lesson(everyone, config.refine.model_copy(update={field: value}))
            yield replace(base, factor=factor, value=_text(value), lesson=lesson, refined=True)


def _with_configured(values: Iterable[T], configured: T) -> list[T]:
    """The values of a factor and the configured one, sorted."""
    return sorted(set(values) | {configured})


def _text(value: float | str | bool) -> str:
    if isinstance(value, bool):
        return "with" if value else "without"
    return value if isinstance(value, str) else f"{value:g}"


def labelers_of(study: Study) -> list[list[ClipSpec]]:
    """Sets of labelers, as `ablate.labelers` names them: the target first, all of them last."""
    inputs = study.inputs
    specs = sorted(inputs.labelers("upl*"), key=lambda s: s.name != inputs.target.name)
    rule = inputs.config.ablate.labelers
    sizes = {"own-fused": [], "each": [1], "all": range(1, len(specs))}[rule]
    sets = [list(s) for size in sizes for s in itertools.combinations(specs, size)]
    return [*(sets or [specs[:1]]), *([specs] if len(specs) > 1 else [])]


def _top_k(study: Study, labelers: list[ClipSpec], k: int | None = None) -> Step:
    """The top-K of every class by some labelers' fused probabilities."""
    inputs, config = study.inputs, study.inputs.config
    k = k or config.label.top_k
    pseudo = study.label(labelers, config.template)
    selection = selection_step(inputs.corpus, pseudo, k)
    if not selection.finished:
        select_images(inputs, pseudo, selection, k, study.cluster)
    return selection


def _above(study: Study, labelers: list[ClipSpec], threshold: float) -> Step:
    """All images whose pseudo-label, fused of some labelers, has at least this confidence."""
    inputs = study.inputs
    pseudo = study.label(labelers, inputs.config.template)
    return write_above_threshold(inputs.store, inputs.corpus, pseudo, threshold, len(inputs.classnames))


def runs_of_points(study: Study, points: list[Point]) -> tuple[list[Run], list[Trained]]:
    """One run for all points that train alike, and the steps of each point's predictions."""
    seeds = study.seeds(study.inputs.config.ablate.seeds)
    tasks: dict[str, Task] = {}
    wanted: dict[str, set[tuple[int, Average]]] = defaultdict(set)
    of_point: list[list[str]] = []
    for point in points:
        folders = []
        for seed in seeds:
            recipe = point.recipe.model_copy(update={"seed": seed})
            task = prompt_task(study.inputs, point.lesson, recipe)
            wanted[task.step.folder].add((point.members, point.average))
            tasks[task.step.folder] = task
            folders.append(task.step.folder)
        of_point.append(folders)
    runs: list[Run] = []
    made: dict[tuple[str, int, Average], Step] = {}
    for folder, task in tasks.items():
        evaluations = sorted(wanted[folder])
        recipe = task.recipe.model_copy(update={"members": max(count for count, _ in evaluations)})
        run = prompt_run(replace(task, recipe=recipe), study.images, evaluations)
        runs.append(run)
        made |= {(folder, n, average): step for (n, average), step in zip(evaluations, run.steps, strict=True)}
    trained = [
        Trained(point, tuple(made[f, point.members, point.average] for f in folders))
        for point, folders in zip(points, of_point, strict=True)
    ]
    return runs, trained


def write_ablation(study: Study, trained: list[Trained]) -> Step:
    """Store the table in four forms; returns its step."""
    inputs, config = study.inputs, study.inputs.config
    identity = {
        "points": [[t.point.factor, t.point.value, [s.folder for s in t.steps]] for t in trained],
        "resamples": config.compare.resamples,
        "fields": classified_fields(config),
        **label_identity(inputs),
    }
    step = Step.of(inputs.store, "ablation", version=3, inputs=identity)
    if not step.finished:
        records = list(records_of(study, trained))
        title = f"{inputs.target.name}: one change at a time, mean and deviation over {config.ablate.seeds} runs"
        write_table(step, ablation_cells(records), records, plot_ablation(records, title), target=inputs.target.name)
    return step


def records_of(study: Study, trained: list[Trained]) -> Iterator[dict[str, Any]]:
    """One record of JSON values for each point; differences are to the configured point, paired by image."""
    inputs, config = study.inputs, study.inputs.config
    ids, true = read_true_labels(study, "scored")
    corpus = read_true_labels(study, "corpus") if config.compare.transductive else None
    bases = {False: ("top-K", str(config.label.top_k)), True: ("refined: beta", _text(config.refine.beta))}
    configured = {r: next(t for t in trained if (t.point.factor, t.point.value) == b) for r, b in bases.items()}
    references = {r: _right(t, "scored", ids, true).mean(axis=0) for r, t in configured.items()}
    for t in trained:
        right, singles = _right(t, "scored", ids, true), _right(t, "scored", ids, true, members=True)
        chosen = score_selection(
            inputs.corpus, read_selection(t.point.lesson.selection), config.corpus.labels, inputs.classnames
        )
        same = t.steps == configured[t.point.refined].steps
        versus = None if same else difference(right.mean(axis=0), references[t.point.refined], config.compare.resamples)
        yield {
            "factor": t.point.factor,
            "value": t.point.value,
            "configured": same,
            "accuracy": spread(right.mean(axis=1).tolist()),
            "difference": versus,
            "single_prompt": spread(singles.mean(axis=1).tolist()),
            "transductive": spread(_right(t, "corpus", *corpus).mean(axis=1).tolist()) if corpus else None,
            "precision": chosen["precision"],
            "images": sum(chosen["images_per_class"]),
            "fewest": min(chosen["images_per_class"]),
            "most": max(chosen["images_per_class"]),
        }


def _right(trained: Trained, field: str, ids: list[str], true: Labels, members: bool = False) -> npt.NDArray[np.bool_]:
    """Which images each run gets right [runs, N]; or each member of each run [runs * S, N]."""
    labels = [read_predictions(s, field, ids) for s in trained.steps]  # [N, 1 + S] each
    chosen = [x[:, 1:] if members else x[:, :1] for x in labels]
    return np.concatenate([(x == true[:, None]).T for x in chosen])


def ablation_cells(records: list[dict[str, Any]]) -> list[list[str]]:
    """The header and one line of text cells a point."""
    columns = [c for c in COLUMNS if c != "transductive" or any(r["transductive"] for r in records)]
    lines = [columns]
    for r in records:
        values = {
            "factor": r["factor"],
            "value": r["value"],
            "accuracy": spread_text(r["accuracy"]),
            "vs configured [95 %]": "(configured)" if r["configured"] else difference_text(r["difference"]),
            "single prompt": spread_text(r["single_prompt"]),
            "transductive": spread_text(r["transductive"]),
            "label precision": "" if r["precision"] is None else f"{100 * r['precision']:.2f}",
            "images": str(r["images"]),
            "fewest a class": str(r["fewest"]),
            "most a class": str(r["most"]),
        }
        lines.append([values[c] for c in columns])
    return lines
