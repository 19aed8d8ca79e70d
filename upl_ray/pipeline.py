"""The story of a run: each step reads finished artifacts and makes one; what is in storage already is not made again.

corpus -> features -> text -> labels -> selection -> views -> members -> classifier -> predictions -> scores -> report
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
import torch

from upl_ray import label, score, train
from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Config
from upl_ray.embed import embed
from upl_ray.encode_text import encode_classnames
from upl_ray.ensemble import FILE, ensemble_bytes
from upl_ray.features import drop_features, feature_artifact
from upl_ray.forecast import forecast
from upl_ray.inputs import Inputs, prepare
from upl_ray.members import read_members, unfinished_members
from upl_ray.plan import Chain, embedded_backbones, needed_features, plan_chain, present_features
from upl_ray.predictions import publish
from upl_ray.preflight import preflight
from upl_ray.progress import duration
from upl_ray.ray_cluster import RayCluster
from upl_ray.rejected import by_reason, check_rejected, find_rejected
from upl_ray.report.page import PAGE, write_report
from upl_ray.report.words import store_words
from upl_ray.selection import select
from upl_ray.snapshot import keep_snapshot
from upl_ray.summary import earlier_seconds
from upl_ray.text_features import text_artifact
from upl_ray.views import make_views

log = logging.getLogger(__name__)

SCORE_VERSION = 2


def run(config: Config) -> dict[str, Any]:
    """Run the whole job, or what is missing of it, and return its summary.

    Raises:
        ConfigError: the configuration cannot work; nothing was started.
        JobError: too many images are unreadable, or work was lost; what is finished stays in storage.
    """
    started = time.monotonic()
    inputs = prepare(config)
    cluster = cluster_for(inputs)
    chains: dict[str, Chain] = {v: plan_chain(inputs, v) for v in config.variants}
    with cluster.watched():
        rejected = embed_corpora(inputs, chains, cluster)
        for variant, chain in chains.items():
            _learn(inputs, variant, chain, rejected, cluster)
    cluster.laps.start("scores")
    scores = _score(inputs, chains)
    _drop(inputs)
    first = chains[config.variants[0]]
    summary = {
        "status": "done" if cluster.used else "already done",
        "seconds": round(time.monotonic() - started, 1),
        "storage": inputs.store.uri,
        "classifier": first.classifier.uri,
        "classifiers": {v: chain.classifier.uri for v, chain in chains.items()},
        "predictions": first.predictions.uri,
        "target": inputs.target.name,
        "images": inputs.corpus.images,
        "rejected": len(rejected),
        "rejected_by_reason": by_reason(rejected),
        "starved_classes": scores[config.variants[0]]["selection"]["starved"],
        "scores": scores,
        "report": inputs.store.join(PAGE),
        "sources": _sources(inputs.config),
        "artifacts": _places(inputs, chains, rejected),
        "steps": earlier_seconds(inputs.store) | (cluster.laps.seconds() if cluster.used else {}),
        "config": config.model_dump(mode="json"),
    }
    inputs.store.write_sealed("run.json", summary)
    for chain in chains.values():
        store_words(chain.classifier, inputs.target)
    write_report(inputs.store)
    log.info("%-12s %s in %s", "job", summary["status"], duration(summary["seconds"]))
    return summary


def cluster_for(inputs: Inputs) -> RayCluster:
    """The cluster that a run joins or starts when it has something to do."""
    specs, compute = list(inputs.specs.values()), inputs.config.compute
    return RayCluster(compute, lambda: preflight(inputs.store, inputs.corpora, specs, compute))


def _sources(config: Config) -> dict[str, Any]:
    """Where images and labels came from: those that a data set named, too, which are not in the configuration."""
    used = {"corpus": config.corpus, "scored": config.scored}
    return {name: source.model_dump(mode="json", include={"uri", "labels"}) for name, source in used.items()}


def _places(inputs: Inputs, chains: dict[str, Chain], rejected: dict[str, str]) -> dict[str, Any]:
    """Folders of everything this run stands on, for readers of its storage."""
    corpora = {"corpus": (inputs.corpus, rejected)} | ({"scored": (inputs.scored, {})} if inputs.scored else {})
    return {
        "corpora": {name: keep_snapshot(corpus, bad).folder for name, (corpus, bad) in corpora.items()},
        "features": {n: feature_artifact(inputs.store, inputs.specs[n]).folder for n in embedded_backbones(inputs)},
        "variants": {
            variant: {step: made.folder for step, made in vars(chain).items() if isinstance(made, Artifact)}
            for variant, chain in chains.items()
        },
    }


def embed_corpora(inputs: Inputs, chains: dict[str, Chain], cluster: RayCluster) -> dict[str, str]:
    """Features that are needed; returns those images of the corpus that could not be read, with their reasons."""
    specs = list(inputs.specs.values())
    needed = needed_features(inputs, chains)
    if present_features(inputs, needed):
        log.info("%-12s already there: %d backbone(s), %d shard(s)", "features", len(specs), len(inputs.corpus.shards))
    else:
        cluster.start("features")
        for line in forecast(inputs, needed, ray.cluster_resources()):
            log.info("%-12s %s", "estimate", line)
        embed(inputs.corpora, specs, inputs.config.compute, needed)
    specs = [s for s in specs if s.name in needed]  # a backbone that labels nothing may have no features
    for spec in specs:
        artifact = feature_artifact(inputs.store, spec)
        if artifact.manifest() is None:
            artifact.finish(backbone=spec.backbone.model_dump(), identity=spec.identity())
    found = find_rejected([feature_artifact(inputs.store, s) for s in specs], inputs.corpora)
    for corpus, rejected in zip(inputs.corpora, found, strict=True):
        check_rejected(inputs.store, corpus, rejected, "label.max_rejected", inputs.config.label.max_rejected)
    return found[0]


def _learn(inputs: Inputs, variant: str, chain: Chain, rejected: dict[str, str], cluster: RayCluster) -> None:
    """Everything between features and predictions for one variant."""
    config, compute, target = inputs.config, inputs.config.compute, inputs.target
    labelers = inputs.labelers(variant)
    log.info("%-12s %s: labeled by %s, learned for %s", "variant", variant, _names(labelers), target.name)
    label_corpora(inputs, labelers, config.template, cluster)
    select_images(inputs, chain.pseudo, chain.selection, config.label.top_k, cluster)
    if chain.views.manifest() is None:
        cluster.start(chain.views.folder)
        make_views(inputs.corpus, chain.selection, target, config.views, compute)
    untrained = unfinished_members(chain.members, config.train)
    if untrained:
        cluster.start(chain.members.folder)
    else:
        log.info("%-12s already there: %d members of %s", "training", config.train.members, variant)
    task = train.Task(chain.members, chain.selection, chain.views, target, inputs.classnames, config.train, compute)
    train.train_members(task, untrained)
    _export(inputs, variant, chain)
    unpredicted = label.unfinished(inputs.corpora, chain.predictions)
    if unpredicted:
        cluster.start(chain.predictions.folder)
    label.predict(unpredicted, chain.predictions, chain.classifier, target, compute)
    publish(chain.predictions, inputs.corpus, rejected, chain.classifier)


def _drop(inputs: Inputs) -> None:
    """Delete the features that the configuration does not keep, now that pseudo-labels and predictions are there."""
    keep = inputs.config.keep_features
    for spec in inputs.specs.values():
        if keep == "none" or (keep == "target" and spec.name != inputs.target.name):
            shards = (s for c in inputs.corpora for s in c.shards)
            dropped = drop_features(feature_artifact(inputs.store, spec), shards)
            if dropped:
                log.info("%-12s %s of %d shards dropped", "features", spec.name, dropped)


def _names(specs: list[ClipSpec]) -> str:
    return ", ".join(s.name for s in specs)


def label_corpora(
    inputs: Inputs, labelers: list[ClipSpec], template: str | tuple[str, ...], cluster: RayCluster
) -> Artifact:
    """Pseudo-labels of all images by some labelers: their class features first, then every shard that has none."""
    store, classnames, compute = inputs.store, inputs.classnames, inputs.config.compute
    texts = [text_artifact(store, s, classnames, template) for s in labelers]
    if any(t.manifest() is None for t in texts):
        cluster.start(texts[0].folder)
        encode_classnames(store, labelers, classnames, template, compute)
    pseudo = label.pseudo_label_artifact(store, labelers, classnames, template)
    todo = label.unfinished(inputs.corpora, pseudo)
    if todo:
        cluster.start(pseudo.folder)
    label.pseudo_label(todo, pseudo, labelers, classnames, template, compute)
    return pseudo


def select_images(inputs: Inputs, pseudo: Artifact, selection: Artifact, k: int, cluster: RayCluster) -> None:
    """The top-K of every class, and a word about classes that got nothing."""
    n_classes = len(inputs.classnames)
    if selection.manifest() is None:
        cluster.start(selection.folder)
        select(selection, inputs.corpus, pseudo, k, n_classes, inputs.config.compute)
    manifest = selection.manifest()
    assert manifest is not None
    starved = [inputs.classnames[c] for c, n in enumerate(manifest["samples_per_class"]) if n == 0]
    log.info("%-12s %d images, top %d of %d classes", "selection", manifest["images"], k, n_classes)
    if starved:
        log.warning("%-12s %d class(es) got no image: %s", "selection", len(starved), ", ".join(starved[:10]))


def _export(inputs: Inputs, variant: str, chain: Chain) -> None:
    """Put the members into one classifier file."""
    artifact, recipe = chain.classifier, inputs.config.train
    if artifact.manifest() is not None:
        return
    tensors = read_members(chain.members, recipe)
    data = ensemble_bytes(
        inputs.target,
        torch.stack([t["text_features"] for t in tensors]),
        torch.stack([t["ctx"] for t in tensors]),
        classnames=list(inputs.classnames),
        logit_scale=float(tensors[0]["logit_scale"]),
        ensemble=recipe.ensemble,
        variant=variant,
        members=chain.members.folder,
    )
    files = artifact.write_file(FILE, data)
    artifact.finish(files=files, members=chain.members.folder, variant=variant, classnames=list(inputs.classnames))


def _score(inputs: Inputs, chains: dict[str, Chain]) -> dict[str, Any]:
    """Scores of each variant; nothing in here flows back into a step."""
    config, names = inputs.config, inputs.classnames
    sources = {"corpus": (inputs.corpus, config.corpus.labels)}
    if inputs.scored:
        sources["scored"] = (inputs.scored, config.scored.labels)
    scores: dict[str, Any] = {}
    for variant, chain in chains.items():
        identity = {
            "version": SCORE_VERSION,
            "predictions": chain.predictions.fingerprint,
            "sources": {n: [c.labels_digest, labels] for n, (c, labels) in sources.items()},
        }
        artifact = Artifact(inputs.store, "scores", fingerprint(identity))
        if artifact.manifest() is None:
            labelers = sorted(s.name for s in inputs.labelers(variant))
            chosen = chain.selection.read_table("selection.parquet")
            artifact.finish(
                labelers=labelers,
                selection=score.score_selection(inputs.corpus, chosen, config.corpus.labels, names),
                zero_shot={
                    n: score.score_zero_shot(c, labels, chain.pseudo, labelers, names)
                    for n, (c, labels) in sources.items()
                },
                predictions={
                    n: score.score_predictions(c, labels, chain.predictions, names)
                    for n, (c, labels) in sources.items()
                },
            )
        manifest = artifact.manifest()
        assert manifest is not None
        scores[variant] = {k: manifest[k] for k in ("labelers", "selection", "zero_shot", "predictions")}
    return scores
