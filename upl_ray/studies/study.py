"""Everything that the methods of a comparison, and the points of an ablation, share: steps of the main job, the table.

Shapes: N images, S members.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from upl_ray.cluster.connect import RayCluster
from upl_ray.config.settings import Config, Refine, Train, Views
from upl_ray.corpus import true_labels
from upl_ray.errors import ConfigError
from upl_ray.pipeline import training as train
from upl_ray.pipeline.inputs import Inputs, prepare
from upl_ray.pipeline.main import embed_corpora, label_corpora, refine_labels, sample_of, select_images, select_sample
from upl_ray.pipeline.members import member_step
from upl_ray.pipeline.plan import Plan, plan_labelers, plan_run
from upl_ray.pipeline.pseudo_labels import pseudo_label_step
from upl_ray.pipeline.refinement import kept_refinement, refinement_step
from upl_ray.pipeline.sample import Sample
from upl_ray.pipeline.soft_selection import soft_selection_step, soft_view_step
from upl_ray.pipeline.views import view_step
from upl_ray.progress import duration
from upl_ray.report.figures import to_png
from upl_ray.storage.step import Step
from upl_ray.studies.runs import ImagesToClassify
from upl_ray.studies.samples import read_labeled_images
from upl_ray.studies.table import to_csv, to_markdown
from upl_ray.studies.thin import is_thinned, thin
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.metrics import UNLABELED, Labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What prompts are learned from."""

    selection: Step
    views: Step
    crops: Views | None = None  # views that are still to be encoded; refined labels come with features of theirs
    prior: Step | None = None  # the refinement whose class shares are learned beside


@dataclass(frozen=True)
class Study:
    """The steps and images that all methods of one comparison share."""

    inputs: Inputs
    plan: Plan
    images: ImagesToClassify
    rejected: dict[str, str]
    cluster: RayCluster
    samples: dict[tuple[str, ...], Sample] = field(default_factory=dict)  # of the corpus, to refine labels with

    def label(self, specs: Iterable[ClipSpec], template: str | tuple[str, ...]) -> Step:
        """Pseudo-labels of all images by some backbones, made unless they are there."""
        labelers = plan_labelers(self.inputs, self.plan.features, specs, template)
        step = pseudo_label_step(self.inputs.store, labelers)
        label_corpora(self.inputs, step, labelers, template, self.cluster)
        return step

    def lesson(self, selection: Step, crops: Views | None = None) -> Lesson:
        """Prompts learned from hard labels of a selection; the configured views of it, unless others are given."""
        crops = crops or self.inputs.config.views
        return Lesson(selection, view_step(selection, self.inputs.target, crops), crops)

    def refined_lesson(self, specs: Iterable[ClipSpec], recipe: Refine) -> Lesson:
        """Prompts learned from refined labels of some backbones, the target among them: the main job's steps.

        They are made unless they are there.
        """
        inputs = replace(self.inputs, config=self.inputs.config.model_copy(update={"refine": recipe}))
        labelers = plan_labelers(inputs, self.plan.features, specs, inputs.config.template)
        names = (str(recipe.sample_per_class), *(x.spec.name for x in labelers))
        sample = self.samples.setdefault(names, sample_of(inputs, labelers))
        refinement = refinement_step(inputs.corpus, labelers, recipe)
        refine_labels(inputs, refinement, sample, self.cluster)
        kept = kept_refinement(refinement)
        selection = soft_selection_step(inputs.corpus, pseudo_label_step(inputs.store, labelers, kept), recipe)
        views = soft_view_step(selection, inputs.target, recipe)
        select_sample(inputs, selection, views, sample, kept, self.cluster)
        return Lesson(selection, views, prior=kept if recipe.adjust else None)

    def seeds(self, runs: int) -> list[int]:
        """A seed for each run; the first is the main job's."""
        return [self.inputs.config.train.seed + i for i in range(runs)]


def study_inputs(config: Config, cluster: RayCluster | None = None) -> Inputs:
    """Inputs of a comparison or an ablation, checked before work starts, except that archives are indexed.

    Raises:
        ConfigError: the configuration cannot work, there are no scored images with labels, or none of a corpus that
            needs them.
    """
    if not config.dataset.name and (not config.scored.uris or config.scored.labels == "none"):
        raise ConfigError(
            "scored.uri or scored.labels is empty; held-out images with labels are needed here, as in "
            "`scored: {uri: held-out, labels: folders}`."
        )
    if config.label.correction_files:
        raise ConfigError(
            f"label.corrections is {config.label.corrections!r}, but a study compares what methods find by themselves; "
            f"omit it here."
        )
    if config.label.min_known:
        raise ConfigError(
            f"label.min_known is {config.label.min_known}, but a study compares how the images of all classes are "
            f"selected; omit it here."
        )
    config = config.model_copy(update={"variants": ("upl*", "upl"), "keep_features": "all"})
    inputs = prepare(config, cluster, validation=True)
    check_corpus_labels(inputs.config)
    return inputs


def check_corpus_labels(config: Config) -> None:
    """Refuse settings that need labels of the corpus where there are none, before anything is embedded."""
    if config.corpus.labels != "none":
        return
    if config.compare.transductive:
        raise ConfigError("compare.transductive is True, but corpus.labels is none; name them, or set it to False.")
    if is_thinned(config.compare):
        raise ConfigError(
            "compare.imbalance or compare.classes_present thins the corpus by its labels, but corpus.labels is none; "
            "name them, or set both to 1."
        )


def classified_fields(config: Config) -> tuple[str, ...]:
    """Fields of the images that are classified: those that are scored, and in the transductive setting the corpus'."""
    return ("scored", "corpus") if config.compare.transductive else ("scored",)


def open_study(inputs: Inputs, cluster: RayCluster) -> Study:
    """Make the main job's steps up to the selections of both variants, as far as they are missing.

    Args:
        inputs: see `study_inputs`; the study's own have a thinned corpus if the settings ask for one.
        cluster: started where something is missing.

    Raises:
        ConfigError: no scored image, or none of a corpus to be thinned, has a label that is a class.
        JobError: see `pipeline.run`.
    """
    config = inputs.config
    plan = plan_run(inputs)
    _, rejected = embed_corpora(inputs, plan, cluster)["corpus"]
    if is_thinned(config.compare):  # only now: features are those of whole shards
        images = read_labeled_images(inputs.corpus, config.corpus.labels, inputs.classnames, rejected)
        inputs = replace(inputs, corpus=thin(images, config.compare))
        plan = plan_run(inputs)
    for variant, chain in plan.chains.items():
        label_corpora(inputs, chain.pseudo_labels, plan.labelers[variant], config.template, cluster)
        select_images(inputs, chain.pseudo_labels, chain.selection, config.label.top_k, cluster)
    shards = {name: inputs.corpora_by_field[name].shards for name in classified_fields(config)}
    images_to_classify = ImagesToClassify(plan.features[inputs.target.name], shards, inputs.target.dim)
    study = Study(inputs, plan, images_to_classify, rejected, cluster)
    read_true_labels(study, "scored")  # better refused now than when everything has been learned
    return study


def prompt_task(inputs: Inputs, lesson: Lesson, recipe: Train) -> train.Task:
    """The task of learning prompts from a lesson; its steps are those that the main job would make."""
    names, compute = inputs.classnames, inputs.config.compute
    members = member_step(lesson.views, inputs.target, names, recipe, lesson.prior)
    return train.Task(members, lesson.selection, lesson.views, inputs.target, names, recipe, compute, lesson.prior)


def read_true_labels(study: Study, field: str) -> tuple[list[str], Labels]:
    """Ids of a field's labeled images that every backbone could read, sorted, and their true classes [N].

    Raises:
        ConfigError: no image has a label that is a class.
    """
    inputs, pseudo = study.inputs, study.plan.chains["upl*"].pseudo_labels
    corpus, rule = inputs.corpora_by_field[field], getattr(inputs.config, field).labels
    pairs: list[tuple[str, int]] = []
    for shard in corpus.shards:
        ids = pseudo.read_shard(shard.state, ["image_id"])["image_id"].to_pylist()
        labels = true_labels.true_labels_of(corpus, shard, ids, rule, inputs.classnames)
        pairs += [(i, int(c)) for i, c in zip(ids, labels, strict=True) if c != UNLABELED]
    if not pairs:
        raise ConfigError(f"{field}.labels: no image of {corpus.name} has a label that is one of the class names.")
    pairs.sort()
    return [i for i, _ in pairs], np.array([c for _, c in pairs])


def label_identity(inputs: Inputs) -> dict[str, Any]:
    """The true labels of corpus and scored images, as inputs of a table."""
    return {
        field: [inputs.corpora_by_field[field].labels_digest, getattr(inputs.config, field).labels]
        for field in ("scored", "corpus")
    }


def write_table(
    step: Step, cells: list[list[str]], records: list[dict[str, Any]], figure: Figure, **facts: Any
) -> None:
    """Store a table as Markdown, CSV and JSON, its plot as PNG, and its records in the manifest."""
    step.store.write(step.path(f"{step.name}.md"), (to_markdown(cells) + "\n").encode())
    step.store.write(step.path(f"{step.name}.csv"), to_csv(cells).encode())
    step.store.write_json(step.path(f"{step.name}.json"), records)
    step.store.write(step.path(f"{step.name}.png"), to_png(figure))
    step.finish(rows=records, **facts)


def finish_study(study: Study, step: Step, cells: list[list[str]], started: float) -> dict[str, Any]:
    """Write the summary of a study to `<name of step>.json`, and return it with the table as Markdown."""
    status = "done" if study.cluster.used else "already done"
    seconds = round(time.monotonic() - started, 1)
    log.info("%-12s %s in %s", step.name, status, duration(seconds))
    store = study.inputs.store
    summary = {"status": status, "seconds": seconds, "storage": store.uri, step.name: step.uri}
    store.write_json(f"{step.name}.json", summary)
    return {**summary, "table": to_markdown(cells)}


def format_summary(summary: dict[str, Any], notes: str = "") -> str:
    """The output of a study's job: the table, notes on how to read it, and one line of JSON."""
    headline = {k: v for k, v in summary.items() if k != "table"}
    return "\n\n".join(filter(None, (summary["table"], notes, json.dumps(headline))))
