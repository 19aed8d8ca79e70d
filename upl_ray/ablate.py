"""Ablations of the configured run over cached features: one change at a time, and both selections by both labels.

features -> pseudo-labels of every set of labelers -> selections -> one view bank -> points x seeds -> table

Points that train alike train once: members and what is averaged over them are read off the same prompts.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from upl_ray import score
from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.bank import share_views
from upl_ray.clip_spec import ClipSpec
from upl_ray.comparison import difference, difference_text, spread, spread_text, to_csv, to_markdown
from upl_ray.config import Config, Train, Views
from upl_ray.inputs import check_context
from upl_ray.pipeline import label_corpora, select_images
from upl_ray.plots import ablation_figure, to_png
from upl_ray.progress import duration
from upl_ray.runs import Average, Run, prompt_run, read_predictions, run_all, unfinished_runs
from upl_ray.samples import write_above_threshold
from upl_ray.selection import selection_artifact
from upl_ray.studies import Study, open_study, prompt_task, study_inputs, true_labels_of
from upl_ray.train import Task

log = logging.getLogger(__name__)

VERSION = 1  # raise when the same predictions give another table
HEADER = (
    *("factor", "value", "accuracy", "vs configured [95 %]", "single prompt"),
    *("label precision", "images", "fewest a class", "most a class"),
)


@dataclass(frozen=True)
class Point:
    """One configuration of the method; `factor` and `value` say what differs from the configured one."""

    factor: str
    value: str
    selection: Artifact
    views: Views
    recipe: Train
    members: int
    average: Average


@dataclass(frozen=True)
class Trained:
    """A point's predictions, one artifact a seed."""

    point: Point
    artifacts: tuple[Artifact, ...]


def ablate(config: Config) -> dict[str, Any]:
    """Run what is missing, write table and plots to storage and return a summary.

    Raises:
        ConfigError: a class name does not fit beside one of `ablate.n_ctx`, or see `studies.study_inputs`.
        JobError: see `studies.open_study`.
    """
    started = time.monotonic()
    inputs = study_inputs(config)
    for n in config.ablate.n_ctx:
        recipe = config.train.model_copy(update={"n_ctx": n})
        check_context(inputs.target, inputs.classnames, recipe, f"drop {n} from ablate.n_ctx")
    study = open_study(inputs)
    points = [p for p in points_of(study) if (p.selection.manifest() or {})["images"]]
    share_views(study.inputs, [(p.selection, p.views) for p in points], study.cluster)
    runs, trained = plan_runs(study, points)
    if unfinished_runs(runs):
        study.cluster.start("ablation")
        run_all("ablation", runs, study.inputs.config.compute)
    artifact = write_ablation(study, trained)
    status = "done" if study.cluster.used else "already done"
    seconds = round(time.monotonic() - started, 1)
    log.info("%-12s %s in %s", "ablation", status, duration(seconds))
    records = (artifact.manifest() or {})["rows"]
    summary = {"status": status, "seconds": seconds, "storage": study.inputs.store.uri, "ablation": artifact.uri}
    study.inputs.store.write_json("ablation.json", summary)
    return {**summary, "table": to_markdown(cells(records))}


def points_of(study: Study) -> Iterator[Point]:
    """The configured point under every factor, each time beside its changes."""
    inputs, config, grid = study.inputs, study.inputs.config, study.inputs.config.ablate
    everyone, own = list(inputs.specs.values()), [inputs.target]
    base = Point(
        "", "", _top_k(study, everyone), config.views, config.train, config.train.members, config.train.ensemble
    )
    for k in _with(grid.top_k, config.label.top_k):
        yield replace(base, factor="top-K", value=str(k), selection=_top_k(study, everyone, k))
    for labelers, name in [(own, "own"), (everyone, "fused")][: len(everyone)]:
        yield replace(base, factor="selection", value=f"top-K, {name}", selection=_top_k(study, labelers))
        for threshold in grid.thresholds:
            above = _above(study, labelers, threshold)
            yield replace(base, factor="selection", value=f"≥ {threshold:g}, {name}", selection=above)
    for labelers in labelers_of(study):
        fused = len(labelers) == len(everyone) > 1
        names = "+".join(s.name for s in labelers)
        yield replace(base, factor="labels", value="all fused" if fused else names, selection=_top_k(study, labelers))
    for n in _with(grid.n_ctx, config.train.n_ctx):
        recipe = config.train.model_copy(update={"n_ctx": n})
        yield replace(base, factor="context length", value=str(n), recipe=recipe)
    for v in _with(grid.views, config.views.count):
        yield replace(base, factor="views", value=str(v), views=config.views.model_copy(update={"count": v}))
    for m in _with(grid.members, config.train.members):
        yield replace(base, factor="members", value=str(m), members=m)
    averages: tuple[Average, ...] = ("probabilities", "logits")
    for average in averages:
        yield replace(base, factor="averaged", value=average, average=average)


def _with(values: tuple[int, ...], configured: int) -> list[int]:
    """The values of a factor, the configured one among them."""
    return sorted({*values, configured})


def labelers_of(study: Study) -> list[list[ClipSpec]]:
    """Sets of labelers, as `ablate.labelers` asks for: the target first, all of them last."""
    inputs = study.inputs
    specs = sorted(inputs.specs.values(), key=lambda s: s.name != inputs.target.name)
    rule = inputs.config.ablate.labelers
    sizes = {"own-fused": [], "each": [1], "all": range(1, len(specs))}[rule]
    sets = [list(s) for size in sizes for s in itertools.combinations(specs, size)]
    return [*(sets or [specs[:1]]), *([specs] if len(specs) > 1 else [])]


def _top_k(study: Study, labelers: list[ClipSpec], k: int | None = None) -> Artifact:
    """The top-K of every class by some labelers' fused probabilities."""
    inputs, config = study.inputs, study.inputs.config
    k = k or config.label.top_k
    pseudo = label_corpora(inputs, labelers, config.template, study.cluster)
    selection = selection_artifact(inputs.store, inputs.corpus, pseudo, k)
    if selection.manifest() is None:
        select_images(inputs, pseudo, selection, k, study.cluster)
    return selection


def _above(study: Study, labelers: list[ClipSpec], threshold: float) -> Artifact:
    """All images that some labelers are sure of."""
    inputs = study.inputs
    pseudo = label_corpora(inputs, labelers, inputs.config.template, study.cluster)
    return write_above_threshold(inputs.store, inputs.corpus, pseudo, threshold, len(inputs.classnames))


def plan_runs(study: Study, points: list[Point]) -> tuple[list[Run], list[Trained]]:
    """One run for all points that train alike, and where each point's predictions will be."""
    seeds = study.seeds(study.inputs.config.ablate.seeds)
    tasks: dict[str, Task] = {}
    wanted: dict[str, set[tuple[int, Average]]] = defaultdict(set)
    of_point: list[list[str]] = []
    for point in points:
        folders = []
        for seed in seeds:
            recipe = point.recipe.model_copy(update={"seed": seed})
            task = prompt_task(study.inputs, point.selection, recipe, point.views)
            wanted[task.artifact.folder].add((point.members, point.average))
            tasks[task.artifact.folder] = task
            folders.append(task.artifact.folder)
        of_point.append(folders)
    runs: list[Run] = []
    made: dict[tuple[str, int, Average], Artifact] = {}
    for folder, task in tasks.items():
        evaluations = sorted(wanted[folder])
        recipe = task.recipe.model_copy(update={"members": max(count for count, _ in evaluations)})
        run, artifacts = prompt_run(replace(task, recipe=recipe), study.images, evaluations)
        runs.append(run)
        made |= {(folder, n, average): a for (n, average), a in zip(evaluations, artifacts, strict=True)}
    trained = [
        Trained(point, tuple(made[f, point.members, point.average] for f in folders))
        for point, folders in zip(points, of_point, strict=True)
    ]
    return runs, trained


def write_ablation(study: Study, trained: list[Trained]) -> Artifact:
    """Store the table as Markdown, CSV and JSON, and the plots as PNG."""
    inputs, config = study.inputs, study.inputs.config
    assert inputs.scored is not None
    identity = {
        "version": VERSION,
        "points": [[t.point.factor, t.point.value, [a.folder for a in t.artifacts]] for t in trained],
        "scored": [inputs.scored.labels_digest, config.scored.labels],
        "corpus": [inputs.corpus.labels_digest, config.corpus.labels],
        "resamples": config.compare.resamples,
    }
    artifact = Artifact(inputs.store, "ablation", fingerprint(identity))
    if artifact.manifest() is None:
        records = list(records_of(study, trained))
        lines = cells(records)
        artifact.store.write(artifact.name("ablation.md"), (to_markdown(lines) + "\n").encode())
        artifact.store.write(artifact.name("ablation.csv"), to_csv(lines).encode())
        artifact.store.write_json(artifact.name("ablation.json"), records)
        title = f"{inputs.target.name}: one change at a time, mean and deviation over {config.ablate.seeds} runs"
        artifact.store.write(artifact.name("ablation.png"), to_png(ablation_figure(records, title)))
        artifact.finish(target=inputs.target.name, rows=records)
    return artifact


def records_of(study: Study, trained: list[Trained]) -> Iterator[dict[str, Any]]:
    """Figures of every point as JSON values; differences are to the configured point, paired by image."""
    inputs, config = study.inputs, study.inputs.config
    ids, true = true_labels_of(study, "scored")
    configured = next(t for t in trained if (t.point.factor, t.point.value) == ("top-K", str(config.label.top_k)))
    reference = np.mean([read_predictions(a, "scored", ids)[:, 0] == true for a in configured.artifacts], axis=0)
    for t in trained:
        votes = [read_predictions(a, "scored", ids) for a in t.artifacts]  # [N, 1 + S] each
        right = np.array([v[:, 0] == true for v in votes])
        table = t.point.selection.read_table("selection.parquet")
        chosen = score.score_selection(inputs.corpus, table, config.corpus.labels, inputs.classnames)
        same = t.artifacts == configured.artifacts
        yield {
            "factor": t.point.factor,
            "value": t.point.value,
            "configured": same,
            "accuracy": spread([float(r.mean()) for r in right]),
            "difference": None if same else difference(right.mean(axis=0), reference, config.compare.resamples),
            "single_prompt": spread([float((v[:, m] == true).mean()) for v in votes for m in range(1, v.shape[1])]),
            "precision": chosen["precision"],
            "images": sum(chosen["images_per_class"]),
            "fewest": min(chosen["images_per_class"]),
            "most": max(chosen["images_per_class"]),
        }


def cells(records: list[dict[str, Any]]) -> list[list[str]]:
    """The header and one line of text cells a point."""
    lines = [list(HEADER)]
    for r in records:
        gap = "(configured)" if r["configured"] else difference_text(r["difference"])
        precision = "" if r["precision"] is None else f"{100 * r['precision']:.2f}"
        counts = [str(r[c]) for c in ("images", "fewest", "most")]
        accuracies = [spread_text(r["accuracy"]), gap, spread_text(r["single_prompt"])]
        lines.append([r["factor"], r["value"], *accuracies, precision, *counts])
    return lines


def report(summary: dict[str, Any]) -> str:
    """What the job prints: the table and one line of JSON."""
    headline = {k: v for k, v in summary.items() if k != "table"}
    return f"{summary['table']}\n\n{json.dumps(headline)}"
