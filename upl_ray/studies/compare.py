"""Every method on the same cached features: one table with accuracies over seeds, intervals and published accuracies.

features -> pseudo-labels -> samples -> one view bank -> methods x seeds -> table

The features are those of the main job, and so are the steps that make them; prompts too are found again by either job.
Methods see the corpus and, where they need labels, samples of it and validation images. Scored images are only scored.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import numpy as np

from upl_ray.cluster.connect import RayCluster
from upl_ray.config.settings import Config, FewShotName
from upl_ray.errors import ConfigError
from upl_ray.pipeline.features import find_rejected
from upl_ray.pipeline.inputs import Inputs, check_context
from upl_ray.pipeline.view_bank import share_views
from upl_ray.storage.step import Step
from upl_ray.studies.methods.prompts import coop_recipe
from upl_ray.studies.methods.templates import read_templates
from upl_ray.studies.methods.tip_adapter import search_of
from upl_ray.studies.plots import plot_comparison
from upl_ray.studies.runs import FewShotSteps, Run, few_shot_run, prompt_run, read_predictions, run_all, unfinished_runs
from upl_ray.studies.samples import (
    VALIDATION_SHOTS,
    LabeledImages,
    draw,
    gather_features,
    gathered_step,
    kept_for_validation,
    read_labeled_images,
    write_above_threshold,
    write_samples,
)
from upl_ray.studies.study import (
    Lesson,
    Study,
    finish_study,
    label_identity,
    open_study,
    prompt_task,
    read_true_labels,
    study_inputs,
    write_table,
)
from upl_ray.studies.table import Row, comparison_cells, summarize
from upl_ray.upl.metrics import Labels

log = logging.getLogger(__name__)

TITLES = {
    "upl": "UPL",
    "upl*": "UPL*",
    "refined-own": "refined labels, own",
    "linear-probe": "linear probe",
    "coop": "CoOp",
    "clip-adapter": "CLIP-Adapter",
    "tip-adapter": "Tip-Adapter",
    "tip-adapter-f": "Tip-Adapter-F",
}
WITH_LABELS = get_args(FewShotName)
FUSED = ("fused", "upl*", "refined-own")  # rows of a run with several labelers: `refined` is the same as `refined-own`
LEARN_PROMPTS = ("threshold", "upl", "upl*", "refined-own", "refined", "coop")
NOTES = (
    "Accuracy on held-out images [%], mean and standard deviation over runs; for learned prompts that of the\n"
    "ensemble, beside it that of single ones. Differences are paired, with 95 % bootstrap intervals over images.\n"
    "Transductive: on the corpus itself, with its own mixture of classes; held-out images count as evenly mixed.\n"
    "Published accuracies are those of the papers, for RN50 and their data; they are not results of this job."
)
Draws = dict[tuple[int, int], tuple[Step, Step]]  # (shots, seed) -> labeled images, validation images


@dataclass(frozen=True)
class Result:
    """Predictions of one method, number of shots and seed: made by `run`, or pseudo-labels."""

    method: str
    shots: int | None
    step: Step
    run: Run | None = None


def compare(config: Config) -> dict[str, Any]:
    """Run what is missing, write the table to storage and return its summary.

    Raises:
        ConfigError, JobError: see `studies.study_inputs` and `studies.open_study`.
    """
    started = time.monotonic()
    cluster = RayCluster(config.compute)
    inputs = study_inputs(config, cluster)
    check_validation_labels(inputs.config)
    check_samples(inputs)
    with_templates = "templates" in config.compare.methods
    templates = read_templates(config.compare.templates, inputs.target, inputs.classnames) if with_templates else ()
    with cluster.watched():
        study = open_study(inputs, cluster)
        step, cells = write_comparison(study, _run_methods(study, templates))
    return finish_study(study, step, cells, started)


def check_validation_labels(config: Config) -> None:
    """Refuse validation images without labels, before anything is learned."""
    if _with_labels(config) and config.validation.uris and config.validation.labels == "none":
        raise ConfigError("validation.labels is none, so nothing can be chosen on these images; say where they are.")


def check_samples(inputs: Inputs) -> None:
    """Refuse samples that methods with labels could not learn from, before anything is embedded.

    Raises:
        ConfigError: a class name does not fit behind CoOp's context, or see `read_train_and_validation`.
    """
    config = inputs.config
    methods = _with_labels(config)
    if "coop" in methods:
        recipe = coop_recipe(min(config.compare.shots), config.dataset.name, config.train.seed)
        check_context(inputs.target, inputs.classnames, recipe, "leave coop out of compare.methods")
    if methods:
        read_train_and_validation(inputs)


def _with_labels(config: Config) -> list[str]:
    """The configured methods that need labels, unless the corpus has none."""
    return [m for m in config.compare.methods if m in WITH_LABELS and config.corpus.labels != "none"]


def _run_methods(study: Study, templates: tuple[str, ...]) -> list[Result]:
    """Make the predictions of every method, number of shots and seed, as far as they are missing."""
    lessons, draws = _lessons_without_labels(study), _draw_all(study)
    learned_from = [*lessons.values(), *(study.lesson(shots) for shots, _ in draws.values())]
    share_views(study.inputs, [(x.selection, x.crops) for x in learned_from if x.crops], study.cluster)
    results = [*_results_without_labels(study, templates, lessons), *_results_with_labels(study, draws)]
    runs = [r.run for r in results if r.run]
    if unfinished_runs(runs):
        study.cluster.start("methods")
        run_all("methods", runs, study.inputs.config.compute)
    return results


def _lessons_without_labels(study: Study) -> dict[str, Lesson]:
    """What each method without labels learns prompts from; a method that has nothing is left out."""
    inputs, config = study.inputs, study.inputs.config
    everyone = inputs.labelers("upl*")
    learned = [m for m in config.compare.methods if len(everyone) > 1 or m not in FUSED]
    lessons: dict[str, Lesson] = {}
    for variant, chain in study.plan.chains.items():
        if variant in learned:
            lessons[variant] = study.lesson(chain.selection)
    for method, labelers in (("refined-own", [inputs.target]), ("refined", everyone)):
        if method in learned:
            lessons[method] = study.refined_lesson(labelers, config.refine)
    if "threshold" in learned:
        threshold, pseudo = config.compare.threshold, study.plan.chains["upl"].pseudo_labels
        above = write_above_threshold(inputs.store, inputs.corpus, pseudo, threshold, len(inputs.classnames))
        if above.manifest()["images"]:
            lessons["threshold"] = study.lesson(above)
        else:
            log.warning("%-12s no image has a confidence of %g: nothing to learn from", "threshold", threshold)
    return lessons


def _draw_all(study: Study) -> Draws:
    """Labeled images and validation images for every number of shots and seed; none without labels."""
    inputs, config = study.inputs, study.inputs.config
    methods = [m for m in config.compare.methods if m in WITH_LABELS]
    if not methods:
        return {}
    if config.corpus.labels == "none":
        log.warning("%-12s corpus.labels is none: %s are left out", "labels", ", ".join(methods))
        return {}
    unreadable: dict[str, str] = {}
    if inputs.validation:
        (unreadable,) = find_rejected([study.images.features], [inputs.validation])
    else:
        log.info("%-12s no validation images given: a fifth of the corpus is kept for it", "samples")
    train, validation = read_train_and_validation(inputs, study.rejected, unreadable)
    sizes = [(k, seed) for seed in study.seeds(config.compare.seeds) for k in sorted(config.compare.shots)]
    most = max(config.compare.shots)
    draws: Draws = {}
    for shots, seed in sizes:
        rows = [of_class[:shots] for of_class in draw(train.labels, most, seed)]
        validation_rows = draw(validation.labels, min(shots, VALIDATION_SHOTS), seed, validation=True)
        draws[shots, seed] = (
            write_samples(inputs.store, train, rows),
            write_samples(inputs.store, validation, validation_rows),
        )
    return draws


def read_train_and_validation(
    inputs: Inputs, rejected: Collection[str] = (), unreadable: Collection[str] = ()
) -> tuple[LabeledImages, LabeledImages]:
    """Images that samples are drawn from, and images that validate; no image is among both.

    Args:
        inputs: whose corpus and validation images have labels.
        rejected: images of the corpus that could not be read.
        unreadable: validation images that could not be read.

    Raises:
        ConfigError: one of them has no labeled image, or the samples would be of one class.
    """
    config = inputs.config
    train = read_labeled_images(inputs.corpus, config.corpus.labels, inputs.classnames, rejected)
    if inputs.validation:
        rule = config.validation.labels
        validation = read_labeled_images(inputs.validation, rule, inputs.classnames, unreadable)
    else:
        train, validation = train.where(lambda i: not kept_for_validation(i)), train.where(kept_for_validation)
    for field, images in (("corpus", train), ("validation", validation)):
        if not images.ids:
            raise ConfigError(f"{field}.labels: no image of {images.corpus.name} has a label that is one of the names.")
    if len(set(train.labels.tolist())) < 2:
        raise ConfigError(
            f"corpus.labels: all labeled images of {train.corpus.name} that can be drawn are "
            f"{inputs.classnames[train.labels[0]]!r}, and two classes are needed; label more, or leave "
            f"{', '.join(_with_labels(config))} out of compare.methods."
        )
    return train, validation


def _results_without_labels(study: Study, templates: tuple[str, ...], lessons: dict[str, Lesson]) -> Iterator[Result]:
    """Zero-shot, in three forms, and prompts learned from pseudo-labels."""
    inputs, config = study.inputs, study.inputs.config
    if "zero-shot" in config.compare.methods:
        yield Result("zero-shot", None, study.plan.chains["upl"].pseudo_labels)
    if templates:
        yield Result("templates", None, study.label([inputs.target], templates))
    if "fused" in config.compare.methods and len(inputs.labelers("upl*")) > 1:
        yield Result("fused", None, study.plan.chains["upl*"].pseudo_labels)
    for method, lesson in lessons.items():
        for seed in study.seeds(config.compare.seeds):
            task = prompt_task(inputs, lesson, config.train.model_copy(update={"seed": seed}))
            run = prompt_run(task, study.images, [(config.train.members, config.train.ensemble)])
            yield Result(method, None, run.steps[0], run)


def _results_with_labels(study: Study, draws: Draws) -> list[Result]:
    """Methods that learn from a few labeled images of each class; they classify scored images only."""
    inputs, config = study.inputs, study.inputs.config
    if not draws:
        return []
    images = replace(study.images, shards={"scored": study.images.shards["scored"]})
    selections = [s for pair in draws.values() for s in pair]
    gathered = gathered_step(images.features, selections)
    text = study.plan.labelers["upl"][0].text
    results = []
    for method in _with_labels(config):
        for (k, seed), (shots, validation) in draws.items():
            recipe = coop_recipe(k, config.dataset.name, seed)
            task = prompt_task(inputs, study.lesson(shots), recipe)
            if method == "coop":
                run = prompt_run(task, images, [(1, "probabilities")])
            else:
                steps = FewShotSteps(shots, task.views, validation, gathered, text)
                run = few_shot_run(method, steps, images, recipe, search_of(config.dataset.name))
            results.append(Result(method, k, run.steps[0], run))
    gather = Run((gathered,), partial(gather_features, gathered, images.features, selections, inputs.corpora))
    if not gather.done and any(r.run and not r.run.done for r in results if r.method != "coop"):
        study.cluster.start("samples")
        run_all("samples", [gather], config.compute)
    return results


def write_comparison(study: Study, results: list[Result]) -> tuple[Step, list[list[str]]]:
    """Store the table in four forms; returns its step and its cells."""
    inputs, config = study.inputs, study.inputs.config
    identity = {
        "results": [[r.method, r.shots, r.step.folder] for r in results],
        "compare": config.compare.model_dump(mode="json"),
        "dataset": config.dataset.name,
        **label_identity(inputs),
    }
    step = Step.of(inputs.store, "comparison", version=2, inputs=identity)
    if not step.finished:
        ids, true = read_true_labels(study, "scored")
        records = summarize(list(rows_of(study, results, ids)), true, config.dataset.name, config.compare.resamples)
        title = f"{inputs.target.name}, {len(ids)} held-out images of {len(inputs.classnames)} classes"
        figure = plot_comparison(records, title)
        facts = {"images": len(ids), "corpus_images": inputs.corpus.images, "target": inputs.target.name}
        write_table(step, comparison_cells(records), records, figure, **facts)
    return step, comparison_cells(step.manifest()["rows"])


def rows_of(study: Study, results: list[Result], ids: list[str]) -> Iterator[Row]:
    """A row for every configured method and number of shots, with the predictions of its runs."""
    inputs, settings = study.inputs, study.inputs.config.compare
    by_row: dict[tuple[str, int | None], list[Result]] = defaultdict(list)
    for result in results:
        by_row[result.method, result.shots].append(result)
    corpus = read_true_labels(study, "corpus") if settings.transductive else None
    titles = TITLES | {
        "zero-shot": "CLIP, one template",
        "templates": "CLIP, template ensemble",
        "fused": f"CLIP, {len(inputs.labelers('upl*'))} backbones fused",
        "refined": "refined labels, fused" if len(inputs.labelers("upl*")) > 1 else "refined labels",
        "threshold": f"threshold self-training, {settings.threshold:g}",
    }
    for method in settings.methods:
        for shots in sorted(settings.shots) if method in WITH_LABELS else [None]:
            of_row = by_row[method, shots]
            labels = [predicted_labels(study, r, "scored", ids) for r in of_row]  # [N, 1 + S] each
            members = [x[:, 1:] for x in labels if method in LEARN_PROMPTS]
            transductive = []
            if corpus and method not in WITH_LABELS:
                corpus_ids, true = corpus
                of_corpus = [predicted_labels(study, r, "corpus", corpus_ids)[:, 0] for r in of_row]
                transductive = [float((predicted == true).mean()) for predicted in of_corpus]
            chosen = [r.step.manifest().get("chosen") for r in of_row if r.run]
            yield Row(
                method,
                titles[method],
                shots,
                [x[:, 0] for x in labels],
                members,
                transductive,
                [c for c in chosen if c],
            )


def predicted_labels(study: Study, result: Result, field: str, ids: list[str]) -> Labels:
    """Labels of a field's images [N, 1 + S]: the method's own, then each member's if it was run."""
    if result.run:
        return read_predictions(result.step, field, ids)
    label_of: dict[str, int] = {}
    for shard in study.inputs.corpora_by_field[field].shards:
        table = result.step.read_shard(shard.state, ["image_id", "pseudo_label"])
        label_of |= dict(zip(table["image_id"].to_pylist(), table["pseudo_label"].to_pylist(), strict=True))
    return np.array([[label_of[i]] for i in ids])
