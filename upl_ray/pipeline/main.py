"""The main job: each step reads finished steps and makes one; what is in storage already is not made again.

corpus -> features -> text -> [refinement ->] pseudo-labels -> selection -> views -> members -> classifier
-> predictions -> scores, verdict -> report [-> experiment trackers]
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from upl_ray.cluster.actors import in_one_sentence
from upl_ray.cluster.connect import RayCluster
from upl_ray.config.settings import Config
from upl_ray.errors import JobError
from upl_ray.pipeline import training
from upl_ray.pipeline.classifier import make_classifier
from upl_ray.pipeline.estimate import describe_embedding
from upl_ray.pipeline.features import (
    by_reason,
    check_rejected,
    check_some_images,
    drop_features,
    find_rejected,
    make_features,
)
from upl_ray.pipeline.inputs import Inputs, prepare
from upl_ray.pipeline.members import unfinished_members
from upl_ray.pipeline.plan import Plan, embedded_backbones, forget_lost, needed_features, plan_run, present_features
from upl_ray.pipeline.predictions import make_predictions, publish
from upl_ray.pipeline.pseudo_labels import Labeler, make_pseudo_labels, read_negatives
from upl_ray.pipeline.refinement import (
    find_verdict,
    judge_labels,
    kept_refinement,
    make_refinement,
    note_refinement,
)
from upl_ray.pipeline.sample import Sample
from upl_ray.pipeline.scores import ScoreTask, labeled_sources, make_scores, read_scores
from upl_ray.pipeline.selection import make_selection
from upl_ray.pipeline.shardwise import unfinished_shards
from upl_ray.pipeline.soft_selection import make_soft_selection, make_soft_views
from upl_ray.pipeline.summary import earlier_seconds, with_truth
from upl_ray.pipeline.text import make_text_features
from upl_ray.pipeline.verdict import make_verdict
from upl_ray.pipeline.view_bank import share_views
from upl_ray.progress import duration
from upl_ray.report.page import PAGE, write_report
from upl_ray.report.tracking import log_run, require_trackers
from upl_ray.storage.step import Step
from upl_ray.upl.tally import Models
from upl_ray.upl.verdict import describe
from upl_ray.upl.zero_shot import all_prompts

log = logging.getLogger(__name__)

UNKNOWN_LABELS = 20  # labels that the summary names
Snapshots = dict[str, tuple[Step, dict[str, str]]]  # corpus, scored -> what the run worked on, its rejected images


def run(config: Config) -> dict[str, Any]:
    """Run the whole job, or what is missing of it, and return its summary.

    Raises:
        ConfigError: the configuration cannot work; nothing was started.
        JobError: too many images are unreadable, or work was lost; what is finished stays in storage.
    """
    started = time.monotonic()
    require_trackers(config.tracking)
    cluster = RayCluster(config.compute)
    inputs = prepare(config, cluster)
    plan = plan_run(inputs)
    plan = plan_run(inputs) if forget_lost(plan.results) else plan
    with cluster.watched():
        snapshots = embed_corpora(inputs, plan, cluster)
        plan = _fit_judges(inputs, plan, cluster)
        refined = {variant: chain.refinement for variant, chain in plan.chains.items() if chain.refinement}
        samples = {variant: sample_of(inputs, plan.labelers[variant], inputs.corrections) for variant in refined}
        for variant, refinement in refined.items():
            refine_labels(inputs, refinement, samples[variant], cluster)
            judge_refined(inputs, refinement, samples[variant], cluster)
        plan = plan_run(inputs) if refined else plan  # a refinement may have kept the fit of before
        for variant in plan.chains:
            _label(inputs, plan, variant, cluster)
        _select(inputs, plan, samples, cluster)
        samples.clear()  # they lie in the memory of the nodes
        _train(inputs, plan, cluster)
        verdicts = {variant: _predict(inputs, plan, variant, cluster) for variant in plan.chains}
        scores = _score(inputs, plan, cluster)
    _drop_features(inputs, plan)
    summary = {"status": "done" if cluster.used else "already done", **_timing(inputs, cluster, started)}
    summary |= _summarize(config, inputs, plan, snapshots, scores)
    truth = {"verdict": with_truth(verdicts, scores, inputs.target.name)}
    summary |= truth | {"absent_classes": absent_classes(inputs, plan)}
    inputs.store.write_json("run.json", summary)
    cluster.laps.start("report")
    write_report(inputs.store)
    log_run(inputs.store, config.tracking)
    summary |= _timing(inputs, cluster, started)
    inputs.store.write_json("run.json", summary)
    log.info("%-12s %s in %s", "job", summary["status"], duration(summary["seconds"]))
    return summary


def embed_corpora(inputs: Inputs, plan: Plan, cluster: RayCluster) -> Snapshots:
    """Make the features that are needed, and keep what the run works on.

    Raises:
        ConfigError: no image of a corpus can be read, as far as a look at some of them shows.
        JobError: too many images of a corpus could not be read.
    """
    specs = list(inputs.specs.values())
    needed = needed_features(inputs, plan)
    if present_features(plan, needed):
        log.info("%-12s already there: %d backbone(s), %d shard(s)", "features", len(specs), len(inputs.corpus.shards))
    else:
        unread = {shard for name, ids in needed.items() for shard in ids - plan.features[name].committed()}
        check_some_images(inputs.corpora, unread, inputs.config.label.max_rejected, inputs.target.geometry)
        labelers = {x.spec.name: x for of in plan.labelers.values() for x in of}
        encode_texts(inputs, list(labelers.values()), inputs.config.template, cluster)  # a damaged tower shows now
        cluster.start("features")
        log.info("%-12s %s", "estimate", describe_embedding(inputs, plan.features, needed))
        make_features(inputs.corpora, specs, plan.features, inputs.config.compute, needed)
    used = [s for s in specs if s.name in needed]  # a backbone that labels nothing may have no features
    for spec in used:
        step = plan.features[spec.name]
        if not step.finished:
            step.finish(backbone=spec.backbone.model_dump(), identity=spec.identity())
    found = find_rejected([plan.features[s.name] for s in used], inputs.corpora)
    limit = inputs.config.label.max_rejected
    kept = [check_rejected(c, bad, "label.max_rejected", limit) for c, bad in zip(inputs.corpora, found, strict=True)]
    return {name: (kept[i], found[i]) for i, name in enumerate(inputs.corpora_by_field)}


def sample_of(inputs: Inputs, labelers: Sequence[Labeler], corrections: Step | None = None) -> Sample:
    """The sample of the corpus that labels are refined with; it is read when it is first used."""
    per_class, n_classes = inputs.config.refine.sample_per_class, len(inputs.classnames)
    min_known = inputs.config.label.min_known
    return Sample(inputs.corpus, labelers, per_class, n_classes, inputs.config.compute, corrections, min_known)


def _fit_judges(inputs: Inputs, plan: Plan, cluster: RayCluster) -> Plan:
    """Make the refinement of each backbone by itself, with which it judges; returns the plan as it is then."""
    todo = [(judge, judge.alone) for judge in plan.judges if judge.alone and not judge.alone.finished]
    for judge, refinement in todo:
        refine_labels(inputs, refinement, sample_of(inputs, [judge]), cluster)
    return plan_run(inputs) if todo else plan


def refine_labels(inputs: Inputs, refinement: Step, sample: Sample, cluster: RayCluster) -> None:
    """The fit of refined labels."""
    encode_texts(inputs, sample.labelers, inputs.config.template, cluster)
    if refinement.finished:
        log.info("%-12s already there: %s", "refinement", refinement.folder)
        note_refinement(refinement, sample, inputs.config.refine)
        return
    cluster.start(refinement.folder)
    with in_one_sentence(inputs.config.compute):
        make_refinement(refinement, sample, inputs.config.refine)


def judge_refined(inputs: Inputs, refinement: Step, sample: Sample, cluster: RayCluster) -> None:
    """The verdict on refined labels, by each labeler that is left out in turn."""
    if find_verdict(refinement, inputs.target.name) is None:
        cluster.start(refinement.folder)
        with in_one_sentence(inputs.config.compute):
            judge_labels(refinement, sample, inputs.config.refine, inputs.target.name)


def absent_classes(inputs: Inputs, plan: Plan) -> list[str]:
    """Names of the classes that less than one image of the corpus is estimated to show; needs refined labels."""
    for chain in plan.chains.values():
        if chain.refinement:
            images: list[float] = chain.refinement.manifest()["class_images"]
            absent = [name for name, n in zip(inputs.classnames, images, strict=True) if n < 1]
            if absent:
                names = ", ".join(absent[:10])
                log.warning("%-12s no image looks like %d class(es), untested: %s", "absent", len(absent), names)
            return absent
    return []


# Each of these steps is made for all variants before the next: actors start once for all, and fill a cluster together.


def _label(inputs: Inputs, plan: Plan, variant: str, cluster: RayCluster) -> None:
    """The pseudo-labels of one variant."""
    chain, labelers = plan.chains[variant], plan.labelers[variant]
    names = ", ".join(x.spec.name for x in labelers)
    log.info("%-12s %s: labeled by %s, learned for %s", "variant", variant, names, inputs.target.name)
    refinement = kept_refinement(chain.refinement) if chain.refinement else None
    label_corpora(inputs, chain.pseudo_labels, labelers, inputs.config.template, cluster, refinement)


def _select(inputs: Inputs, plan: Plan, samples: dict[str, Sample], cluster: RayCluster) -> None:
    """The selections of all variants, and their views; refined labels come with their sample."""
    selected = []
    for variant, chain in plan.chains.items():
        if chain.refinement:
            refinement = kept_refinement(chain.refinement)
            select_sample(inputs, chain.selection, chain.views, samples[variant], refinement, cluster)
        else:
            select_images(inputs, chain.pseudo_labels, chain.selection, inputs.config.label.top_k, cluster)
            selected.append((chain.selection, inputs.config.views))
    share_views(inputs, selected, cluster)


def _train(inputs: Inputs, plan: Plan, cluster: RayCluster) -> None:
    """The members of all variants, as one set of trials, and the classifiers."""
    config, tasks = inputs.config, []
    for variant, chain in plan.chains.items():
        prior = kept_refinement(chain.refinement) if chain.refinement and config.refine.adjust else None
        about = (inputs.target, inputs.classnames, config.train, config.compute, prior, variant)
        tasks.append(training.Task(chain.members, chain.selection, chain.views, *about))
    unfinished = [unfinished_members(task.step, config.train) for task in tasks]
    for variant, members in zip(plan.chains, unfinished, strict=True):
        if not members:
            log.info("%-12s already there: %d members of %s", "training", config.train.members, variant)
    first = next((task.step for task, members in zip(tasks, unfinished, strict=True) if members), None)
    if first:
        cluster.start(first.folder)
    training.train_members(tasks, unfinished, ray_train=cluster.joined)
    for (variant, chain), task in zip(plan.chains.items(), tasks, strict=True):
        if not chain.classifier.finished:
            own = next(x for x in plan.labelers[variant] if x.spec == inputs.target)
            make_classifier(chain.classifier, chain.members, own, inputs.classnames, config.train, variant, task.prior)


def _predict(inputs: Inputs, plan: Plan, variant: str, cluster: RayCluster) -> dict[str, Any]:
    """The predictions of one variant; returns the verdict, see `make_verdict`."""
    chain = plan.chains[variant]
    todo = unfinished_shards(inputs.corpora, chain.predictions)
    if todo:
        cluster.start(chain.predictions.folder)
    features, compute = plan.features[inputs.target.name], inputs.config.compute
    make_predictions(chain.predictions, todo, chain.classifier, features, compute)
    verdict = _judge(inputs, plan, variant, cluster)
    publish(chain.predictions, inputs.corpus, chain.classifier, remade=bool(todo))
    return verdict


def _judge(inputs: Inputs, plan: Plan, variant: str, cluster: RayCluster) -> dict[str, Any]:
    """The verdict on one variant.

    Raises:
        JobError: the exported classifier is worse than the template, and `on_worse` is stop.
    """
    chain, bench, target = plan.chains[variant], plan.bench(variant), inputs.target.name
    encode_texts(inputs, bench.referees, inputs.config.template, cluster)
    todo = bench.unjudged_shards(chain, inputs.corpus)
    if todo:
        cluster.start(bench.step.folder)
    found = make_verdict(chain, inputs.corpus, bench, todo, inputs.config.compute, inputs.corrections)
    if found["labels"]:
        log.info("%-12s labels of %s: %s", "verdict", variant, describe(found["labels"]))
    sentence = f"classifier of {variant}: {describe(found['classifier'])}"
    if found["classifier"]["answer"] != "worse":
        log.info("%-12s %s", "verdict", sentence)
        return found
    if inputs.config.on_worse == "stop" and variant == inputs.config.variants[0]:
        before = chain.predictions.find_manifest()
        published = "It stays published as an earlier run left it" if before else "Nothing is published"
        raise JobError(
            f"{published}, as on_worse is stop: {sentence}. Classify with the template of {target}, or set on_worse to "
            f"warn."
        )
    log.warning("%-12s WORSE THAN THE TEMPLATE: %s; classify with the template of %s", "verdict", sentence, target)
    return found


def _score(inputs: Inputs, plan: Plan, cluster: RayCluster) -> dict[str, Any]:
    """Scores of every variant, made where they are missing: labels may change when nothing else does."""
    if not all(chain.scores.finished for chain in plan.chains.values()):
        cluster.start("scores")
    for variant, chain in plan.chains.items():
        if chain.scores.finished:  # perhaps only since the variant before, which has the same steps
            continue
        labelers = tuple(x.spec.name for x in plan.labelers[variant])
        members, min_known = inputs.config.train.members, inputs.config.label.min_known
        models = Models(len(inputs.classnames), labelers, inputs.target.name, members, min_known)
        task = ScoreTask(chain, labeled_sources(inputs), models, inputs.classnames, inputs.corrections)
        make_scores(task, inputs.config.compute)
    scores = {variant: read_scores(chain.scores) for variant, chain in plan.chains.items()}
    known = scores[inputs.config.variants[0]]["known"]["corpus"]
    if known and known["min_known"]:
        log.info(
            "%-12s %d of %d images are below label.min_known = %g, and selected for no class",
            *("known", known["below"], known["images"], known["min_known"]),
        )
    return scores


def label_corpora(
    inputs: Inputs,
    pseudo_labels: Step,
    labelers: Sequence[Labeler],
    template: str | tuple[str, ...],
    cluster: RayCluster,
    refinement: Step | None = None,
) -> None:
    """Pseudo-labels of all images by some labelers: their class features first, then every shard that has none."""
    encode_texts(inputs, labelers, template, cluster)
    todo = unfinished_shards(inputs.corpora, pseudo_labels)
    if todo:
        cluster.start(pseudo_labels.folder)
    make_pseudo_labels(pseudo_labels, todo, labelers, inputs.classnames, inputs.config.compute, refinement)


def encode_texts(
    inputs: Inputs, labelers: Sequence[Labeler], template: str | tuple[str, ...], cluster: RayCluster
) -> None:
    """Features of class names, and of words that compete with them, of some backbones, made where they are missing."""
    prompts = all_prompts(template, inputs.classnames)
    todo = []
    for x in labelers:
        wanted = [(x.text, prompts), *([(x.negatives, inputs.negatives[x.spec.name])] if x.negatives else [])]
        if unfinished := [(step, of) for step, of in wanted if not step.finished]:
            todo.append((x.spec, unfinished))
    if todo:
        cluster.start(todo[0][1][0][0].folder)
        make_text_features(todo, inputs.config.compute)
        for x in (x for x in labelers if x.negatives and x.spec in [spec for spec, _ in todo]):
            n, given = len(read_negatives(x)), len(inputs.negatives[x.spec.name])
            level = logging.INFO if n else logging.WARNING
            log.log(level, "%-12s %s: %d of %d other words compete with the classes", "known", x.spec.name, n, given)


def select_sample(
    inputs: Inputs, selection: Step, views: Step, sample: Sample, refinement: Step, cluster: RayCluster
) -> None:
    """The images that prompts learn refined labels from, with features and targets."""
    recipe = inputs.config.refine
    if not selection.finished:
        cluster.start(selection.folder)
        with in_one_sentence(inputs.config.compute):
            make_soft_selection(selection, sample, refinement, recipe)
    if not views.finished:
        cluster.start(views.folder)
        with in_one_sentence(inputs.config.compute):
            make_soft_views(views, sample, refinement, inputs.target.name, recipe)
    images = selection.manifest()["images"]
    if not images:
        raise JobError(
            f"No image was drawn to learn from: refine.train_per_class = {recipe.train_per_class} is too small for a "
            f"corpus of {inputs.corpus.images} images, or label.min_known = {inputs.config.label.min_known} is above "
            f"all of them; change it."
        )
    log.info("%-12s %d images, %.1f a class on average", "selection", images, images / len(inputs.classnames))


def select_images(inputs: Inputs, pseudo_labels: Step, selection: Step, k: int, cluster: RayCluster) -> None:
    """The top-K of every class, and a warning about classes that got nothing."""
    n_classes = len(inputs.classnames)
    if not selection.finished:
        cluster.start(selection.folder)
        min_known, compute = inputs.config.label.min_known, inputs.config.compute
        make_selection(selection, inputs.corpus, pseudo_labels, k, n_classes, compute, inputs.corrections, min_known)
    manifest = selection.manifest()
    if not manifest["images"]:
        raise JobError(_why_none(inputs))
    starved = [inputs.classnames[c] for c, n in enumerate(manifest["samples_per_class"]) if n == 0]
    log.info("%-12s %d images, top %d of %d classes", "selection", manifest["images"], k, n_classes)
    if starved:
        log.warning("%-12s %d class(es) got no image: %s", "selection", len(starved), ", ".join(starved[:10]))


def _why_none(inputs: Inputs) -> str:
    if inputs.config.label.min_known:
        return (
            f"No image was selected: none has label.min_known = {inputs.config.label.min_known} or more; lower it, or "
            f"set it to 0 and look at the least known images in the report."
        )
    return "No image was selected: none of the corpus could be read; see rejected.parquet in its snapshot."


def _drop_features(inputs: Inputs, plan: Plan) -> None:
    """Delete the features that the configuration does not keep, now that pseudo-labels and predictions are there."""
    keep = inputs.config.keep_features
    for name, step in plan.features.items():
        if keep == "none" or (keep == "target" and step != plan.features[inputs.target.name]):
            dropped = drop_features(step, (s for c in inputs.corpora for s in c.shards))
            if dropped:
                log.info("%-12s %s of %d shards dropped", "features", name, dropped)


def _summarize(
    config: Config, inputs: Inputs, plan: Plan, snapshots: Snapshots, scores: dict[str, Any]
) -> dict[str, Any]:
    """What `run.json` holds, but for status and times."""
    first = config.variants[0]
    rejected = snapshots["corpus"][1]
    return {
        "storage": inputs.store.uri,
        "classifier": plan.chains[first].classifier.uri,
        "classifiers": {v: chain.classifier.uri for v, chain in plan.chains.items()},
        "predictions": plan.chains[first].predictions.uri,
        "target": inputs.target.name,
        "images": inputs.corpus.images,
        "rejected": len(rejected),
        "rejected_by_reason": by_reason(rejected),
        "left_out": {name: dict(corpus.left_out.counts) for name, corpus in inputs.corpora_by_field.items()},
        "unknown_labels": {name: dict(n.most_common(UNKNOWN_LABELS)) for name, n in inputs.unknown_labels.items()},
        "starved_classes": scores[first]["selection"]["starved"],
        "scores": scores,
        "report": inputs.store.join(PAGE),
        # Where images and labels came from: those that a data set named, too, which are not in the configuration.
        "sources": {
            name: source.model_dump(mode="json", include={"uri", "labels"})
            for name, source in (("corpus", inputs.config.corpus), ("scored", inputs.config.scored))
        },
        "folders": {
            "corpora": {name: step.folder for name, (step, _) in snapshots.items()},
            "features": {n: plan.features[n].folder for n in embedded_backbones(inputs)},
            "corrections": inputs.corrections.folder if inputs.corrections else "",
            "variants": {v: chain.folders() for v, chain in plan.chains.items()},
        },
        "config": config.model_dump(mode="json"),
    }


def _timing(inputs: Inputs, cluster: RayCluster, started: float) -> dict[str, Any]:
    """Seconds of the whole job and of each step until now; a step that was there already keeps its time."""
    steps = earlier_seconds(inputs.store) | (cluster.laps.seconds() if cluster.used else {})
    return {"seconds": round(time.monotonic() - started, 1), "steps": steps}
