"""Every method on the same cached features: one table with accuracies over seeds, intervals and published figures.

features -> pseudo-labels -> samples -> one view bank -> methods x seeds -> table

The features are those of the main job, and so are the steps that make them; prompts too are found again by either job.
Methods see the corpus and, where they need labels, samples of it and validation images. Scored images are only scored.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.bank import share_views
from upl_ray.comparison import Row, cells, summarize, to_csv, to_markdown
from upl_ray.config import Config, ConfigError
from upl_ray.few_shot_runs import Samples, few_shot_run
from upl_ray.inputs import Inputs, check_context
from upl_ray.methods.few_shot import VALIDATION_SHOTS, draw, held_out
from upl_ray.methods.prompts import coop_recipe
from upl_ray.methods.templates import read_templates
from upl_ray.methods.tip_adapter import search_of
from upl_ray.pipeline import label_corpora
from upl_ray.plots import comparison_figure, to_png
from upl_ray.progress import duration
from upl_ray.rejected import find_rejected
from upl_ray.runs import Run, prompt_run, run_all, unfinished_runs
from upl_ray.samples import Pool, gather_features, gathered_artifact, read_pool, write_above_threshold, write_samples
from upl_ray.studies import Cell, Study, open_study, prompt_task, study_inputs, true_labels_of, votes_of
from upl_ray.study_config import FewShotName
from upl_ray.text_features import text_artifact

log = logging.getLogger(__name__)

VERSION = 1  # raise when the same predictions give another table
TITLES = {
    "upl": "UPL",
    "upl*": "UPL*",
    "linear-probe": "linear probe",
    "coop": "CoOp",
    "clip-adapter": "CLIP-Adapter",
    "tip-adapter": "Tip-Adapter",
    "tip-adapter-f": "Tip-Adapter-F",
}
WITH_LABELS = get_args(FewShotName)
Draws = dict[tuple[int, int], tuple[Artifact, Artifact]]  # (shots, seed) -> labeled images, validation images


def compare(config: Config) -> dict[str, Any]:
    """Run what is missing, write the table to storage and return its summary.

    Raises:
        ConfigError, JobError: see `studies.study_inputs` and `studies.open_study`.
    """
    started = time.monotonic()
    inputs = study_inputs(config)
    check_labels_given(inputs.config)
    check_samples(inputs)
    wanted = "templates" in config.compare.methods
    templates = read_templates(config.compare.templates, inputs.target, inputs.classnames) if wanted else ()
    study = open_study(inputs, config.compare.transductive)
    selections, drawn = _pseudo_labeled(study), _drawn(study)
    learned_from = [*selections.values(), *(shots for shots, _ in drawn.values())]
    share_views(study.inputs, [(s, config.views) for s in learned_from], study.cluster)
    cells_of_study = [*_without_labels(study, templates, selections), *_with_labels(study, drawn)]
    runs = [c.run for c in cells_of_study if c.run]
    if unfinished_runs(runs):
        study.cluster.start("methods")
        run_all("methods", runs, study.inputs.config.compute)
    artifact, lines = write_table(study, cells_of_study)
    status = "done" if study.cluster.used else "already done"
    seconds = round(time.monotonic() - started, 1)
    log.info("%-12s %s in %s", "comparison", status, duration(seconds))
    store = study.inputs.store
    summary = {"status": status, "seconds": seconds, "storage": store.uri, "comparison": artifact.uri}
    store.write_json("comparison.json", summary)
    return {**summary, "table": to_markdown(lines)}


def check_labels_given(config: Config) -> None:
    """Refuse what needs labels that are not given, before anything is learned."""
    if config.compare.transductive and config.corpus.labels == "none":
        raise ConfigError("compare.transductive is True, but corpus.labels is none; name them, or set it to False.")
    with_labels = any(m in WITH_LABELS for m in config.compare.methods) and config.corpus.labels != "none"
    if with_labels and config.validation.uris and config.validation.labels == "none":
        raise ConfigError("validation.labels is none, so nothing can be chosen on these images; say where they are.")


def check_samples(inputs: Inputs) -> None:
    """Refuse what methods with labels could not learn from, before anything is embedded: see `pools_of`.

    Raises:
        ConfigError: too few classes have labels, or a class name does not fit behind CoOp's context.
    """
    config = inputs.config
    methods = [m for m in config.compare.methods if m in WITH_LABELS]
    if not methods or config.corpus.labels == "none":
        return
    if "coop" in methods:
        recipe = coop_recipe(min(config.compare.shots), config.dataset.name, config.train.seed)
        check_context(inputs.target, inputs.classnames, recipe, "leave coop out of compare.methods")
    pools_of(inputs)


def _pseudo_labeled(study: Study) -> dict[str, Artifact]:
    """The images that each method without labels learns prompts from; a method that has none is left out."""
    inputs, config = study.inputs, study.inputs.config
    several = len(inputs.specs) > 1
    learned = [v for v in ("upl", "upl*") if v in config.compare.methods and (several or v == "upl")]
    selections: dict[str, Artifact] = {v: study.chains[v].selection for v in learned}
    if "threshold" in config.compare.methods:
        threshold, pseudo = config.compare.threshold, study.chains["upl"].pseudo
        above = write_above_threshold(inputs.store, inputs.corpus, pseudo, threshold, len(inputs.classnames))
        if (above.manifest() or {})["images"]:
            selections["threshold"] = above
        else:
            log.warning("%-12s no image has a confidence of %g: nothing to learn from", "threshold", threshold)
    return selections


def _drawn(study: Study) -> Draws:
    """Labeled images and validation images for every number of shots and seed; none without labels."""
    config = study.inputs.config
    methods = [m for m in config.compare.methods if m in WITH_LABELS]
    if not methods or not config.compare.shots:
        return {}
    if config.corpus.labels == "none":
        log.warning("%-12s corpus.labels is none: %s are left out", "labels", ", ".join(methods))
        return {}
    inputs, unreadable = study.inputs, {}
    if inputs.validation:
        (unreadable,) = find_rejected([study.images.features], [inputs.validation])
    else:
        log.info("%-12s no validation images given: a fifth of the corpus is kept for it", "samples")
    pools = pools_of(inputs, study.rejected, unreadable)
    sizes = [(k, seed) for seed in study.seeds(config.compare.seeds) for k in sorted(set(config.compare.shots))]
    return {(k, seed): _draw(study, pools, k, seed) for k, seed in sizes}


def _without_labels(study: Study, templates: tuple[str, ...], selections: dict[str, Artifact]) -> Iterator[Cell]:
    """Zero-shot, in three forms, and prompts learned from pseudo-labels."""
    inputs, config = study.inputs, study.inputs.config
    if "zero-shot" in config.compare.methods:
        yield Cell("zero-shot", None, study.chains["upl"].pseudo)
    if templates:
        yield Cell("templates", None, label_corpora(inputs, [inputs.target], templates, study.cluster))
    if "fused" in config.compare.methods and len(inputs.specs) > 1:
        yield Cell("fused", None, study.chains["upl*"].pseudo)
    for method, selection in selections.items():
        for seed in study.seeds(config.compare.seeds):
            task = prompt_task(inputs, selection, config.train.model_copy(update={"seed": seed}), config.views)
            run, (artifact,) = prompt_run(task, study.images, [(config.train.members, config.train.ensemble)])
            yield Cell(method, None, artifact, run)


def _with_labels(study: Study, drawn: Draws) -> list[Cell]:
    """Methods that learn from a few labeled images of each class; they classify scored images only."""
    inputs, config = study.inputs, study.inputs.config
    if not drawn:
        return []
    images = replace(study.images, parts={"scored": study.images.parts["scored"]})
    selections = [s for pair in drawn.values() for s in pair]
    gathered = gathered_artifact(images.features, selections)
    text = text_artifact(inputs.store, inputs.target, inputs.classnames, config.template)
    found = []
    for method in [m for m in config.compare.methods if m in WITH_LABELS]:
        for (k, seed), (shots, validation) in drawn.items():
            recipe = coop_recipe(k, config.dataset.name, seed)
            task = prompt_task(inputs, shots, recipe, config.views)
            if method == "coop":
                run, (artifact,) = prompt_run(task, images, [(1, "probabilities")])
            else:
                samples = Samples(shots, task.views, validation, gathered, text)
                run = few_shot_run(method, samples, images, seed, recipe, search_of(config.dataset.name))
                (artifact,) = run.artifacts
            found.append(Cell(method, k, artifact, run))
    gather = Run((gathered,), partial(gather_features, gathered, images.features, selections, inputs.corpora))
    if not gather.done and any(c.run and not c.run.done for c in found if c.method != "coop"):
        study.cluster.start("samples")
        run_all("samples", [gather], config.compute)
    return found


def pools_of(inputs: Inputs, rejected: Collection[str] = (), unreadable: Collection[str] = ()) -> tuple[Pool, Pool]:
    """Images that samples are drawn from, and images that validate; apart from each other.

    Args:
        inputs: whose corpus and validation images have labels.
        rejected: images of the corpus that could not be read.
        unreadable: validation images that could not be read.

    Raises:
        ConfigError: one of them has no labeled image, or the samples would be of one class.
    """
    config = inputs.config
    pool = read_pool(inputs.corpus, config.corpus.labels, inputs.classnames, rejected)
    if inputs.validation:
        validation = read_pool(inputs.validation, config.validation.labels, inputs.classnames, unreadable)
    else:
        pool, validation = pool.where(lambda i: not held_out(i)), pool.where(held_out)
    for name, images in (("corpus", pool), ("validation", validation)):
        if not images.ids:
            raise ConfigError(f"{name}.labels: no image of {images.corpus.name} has a label that is one of the names.")
    if len(set(pool.labels.tolist())) < 2:
        methods = ", ".join(m for m in config.compare.methods if m in WITH_LABELS)
        raise ConfigError(
            f"corpus.labels: all labeled images of {pool.corpus.name} that can be drawn are "
            f"{inputs.classnames[pool.labels[0]]!r}, and two classes are needed; label more, or leave {methods} out of "
            f"compare.methods."
        )
    return pool, validation


def _draw(study: Study, pools: tuple[Pool, Pool], shots: int, seed: int) -> tuple[Artifact, Artifact]:
    """Shots and validation images of one seed."""
    pool, validation = pools
    most = max(study.inputs.config.compare.shots)
    rows = [c[:shots] for c in draw(pool.labels, most, seed)]
    to_validate = draw(validation.labels, min(shots, VALIDATION_SHOTS), seed, validation=True)
    return (
        write_samples(study.inputs.store, pool, rows),
        write_samples(study.inputs.store, validation, to_validate),
    )


def write_table(study: Study, found: list[Cell]) -> tuple[Artifact, list[list[str]]]:
    """Store the table as Markdown, CSV, JSON and PNG; returns where, and its cells."""
    inputs, config = study.inputs, study.inputs.config
    assert inputs.scored is not None
    identity = {
        "version": VERSION,
        "cells": [[c.method, c.shots, c.artifact.folder] for c in found],
        "compare": config.compare.model_dump(mode="json"),
        "scored": [inputs.scored.labels_digest, config.scored.labels],
        "corpus": [inputs.corpus.labels_digest, config.corpus.labels],
        "dataset": config.dataset.name,
    }
    artifact = Artifact(inputs.store, "comparison", fingerprint(identity))
    if artifact.manifest() is None:
        ids, true = true_labels_of(study, "scored")
        records = summarize(list(rows_of(study, found, ids)), true, config.dataset.name, config.compare.resamples)
        lines = cells(records)
        title = f"{inputs.target.name}, {len(ids)} held-out images of {len(inputs.classnames)} classes"
        store = inputs.store
        store.write(artifact.name("comparison.md"), (to_markdown(lines) + "\n").encode())
        store.write(artifact.name("comparison.csv"), to_csv(lines).encode())
        store.write_json(artifact.name("comparison.json"), records)
        store.write(artifact.name("comparison.png"), to_png(comparison_figure(records, title)))
        artifact.finish(images=len(ids), target=inputs.target.name, rows=records)
    manifest = artifact.manifest()
    assert manifest is not None
    return artifact, cells(manifest["rows"])


def rows_of(study: Study, found: list[Cell], ids: list[str]) -> Iterator[Row]:
    """A row for every configured method and number of shots, with the predictions of its runs."""
    inputs, compare_config = study.inputs, study.inputs.config.compare
    by_row: dict[tuple[str, int | None], list[Cell]] = defaultdict(list)
    for cell in found:
        by_row[cell.method, cell.shots].append(cell)
    truth = true_labels_of(study, "corpus") if compare_config.transductive else None
    titles = TITLES | {
        "zero-shot": "CLIP, one template",
        "templates": "CLIP, template ensemble",
        "fused": f"CLIP, {len(inputs.specs)} backbones fused",
        "threshold": f"threshold self-training, {compare_config.threshold:g}",
    }
    for method in compare_config.methods:
        for shots in sorted(set(compare_config.shots)) if method in WITH_LABELS else [None]:
            of_row = by_row[method, shots]
            votes = [votes_of(study, c, "scored", ids) for c in of_row]
            prompts = [v[:, 1:] for v in votes if method in ("threshold", "upl", "upl*", "coop")]
            seen = []
            if truth and method not in WITH_LABELS:
                seen = [float((votes_of(study, c, "corpus", truth[0])[:, 0] == truth[1]).mean()) for c in of_row]
            chosen = [(c.artifact.manifest() or {}).get("chosen") for c in of_row if c.run]
            picked = [c for c in chosen if c]
            yield Row(method, titles[method], shots, [v[:, 0] for v in votes], prompts, seen, picked)


def report(summary: dict[str, Any]) -> str:
    """What the job prints: the table, how to read it, and one line of JSON."""
    notes = (
        "Accuracy on held-out images [%], mean and standard deviation over runs; for learned prompts that of the\n"
        "ensemble, beside it that of single ones. Differences are paired, with 95 % bootstrap intervals over images.\n"
        "Published figures are those of the papers, for RN50 and their data; they are not results of this job."
    )
    headline = {k: v for k, v in summary.items() if k != "table"}
    return f"{summary['table']}\n\n{notes}\n\n{json.dumps(headline)}"
