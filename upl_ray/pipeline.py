"""The story of a run: each step reads finished artifacts and makes one; what is in storage already is not made again.

corpus -> features -> text -> labels -> selection -> views -> members -> classifier -> predictions -> scores
"""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch

from upl_ray import label, pseudo_labels, score, train
from upl_ray.artifacts import IO_THREADS, Artifact, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Config, JobError
from upl_ray.corpus import Corpus
from upl_ray.embed import embed
from upl_ray.encode_text import encode_classnames
from upl_ray.ensemble import FILE, ensemble_bytes
from upl_ray.features import feature_artifact, is_embedded, rejected_images
from upl_ray.inputs import Inputs, prepare
from upl_ray.members import member_artifact, read_members, unfinished_members
from upl_ray.progress import duration
from upl_ray.text_features import text_artifact
from upl_ray.views import make_views, view_artifact

log = logging.getLogger(__name__)

SELECTION_VERSION = 1
CLASSIFIER_VERSION = 1
SCORE_VERSION = 1


def run(config: Config) -> dict[str, Any]:
    """Run the whole job, or what is missing of it, and return its summary.

    Raises:
        ConfigError: the configuration cannot work; nothing was started.
        JobError: too many images are unreadable, or work was lost; what is finished stays in storage.
    """
    started = time.monotonic()
    inputs = prepare(config)
    before = _Work()
    rejected = _embed(inputs, before)
    variants: dict[str, dict[str, Artifact]] = {v: _learn(inputs, v, rejected, before) for v in config.variants}
    scores = _score(inputs, variants)
    first = variants[config.variants[0]]
    summary = {
        "status": "done" if before.any else "already done",
        "seconds": round(time.monotonic() - started, 1),
        "storage": inputs.store.uri,
        "classifier": first["classifier"].uri,
        "classifiers": {v: made["classifier"].uri for v, made in variants.items()},
        "predictions": first["predictions"].uri,
        "target": inputs.target.name,
        "images": inputs.corpus.images,
        "rejected": len(rejected),
        "starved_classes": scores[config.variants[0]]["selection"]["starved"],
        "scores": scores,
    }
    inputs.store.write_json("run.json", summary)
    log.info("%-12s %s in %s", "job", summary["status"], duration(time.monotonic() - started))
    return summary


class _Work:
    """Starts Ray at the first step that has something to do."""

    def __init__(self) -> None:
        self.any = False

    def start(self, config: Config) -> None:
        self.any = True
        if ray.is_initialized():
            return
        address = config.compute.ray_address or os.environ.get("RAY_ADDRESS") or "local"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = address == "local"
        if local:  # Ray's own log files keep what is not shown here
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        level = logging.ERROR if local else logging.WARNING
        ray.init(
            address=address, logging_level=level, log_to_driver=not local, include_dashboard=False if local else None
        )
        resources = ray.cluster_resources()
        log.info("%-12s %g CPUs, %g GPUs", "ray", resources.get("CPU", 0), resources.get("GPU", 0))
        if not resources.get("CPU"):
            raise JobError(
                "The cluster has no CPU for work; start at least one worker node (min_workers: 1) before the job."
            )
        nodes = sum(n["Alive"] for n in ray.nodes())
        if nodes > 1 and "://" not in config.storage_path:
            log.warning("storage_path %s is local: all %d nodes must share it", config.storage_path, nodes)


def _embed(inputs: Inputs, work: _Work) -> dict[str, str]:
    """Features of all images; returns those of the corpus that could not be read, with their reasons."""
    specs = list(inputs.specs.values())
    if all(is_embedded(inputs.corpora, s) for s in specs):
        log.info("%-12s already there: %d backbone(s), %d shard(s)", "features", len(specs), len(inputs.corpus.shards))
    else:
        work.start(inputs.config)
        embed(inputs.corpora, specs, inputs.config.compute)
    for spec in specs:
        artifact = feature_artifact(inputs.store, spec)
        if artifact.manifest() is None:
            artifact.finish(backbone=spec.backbone.model_dump(), identity=spec.identity())
    found = [_rejected(inputs, corpus) for corpus in inputs.corpora]
    for corpus, rejected in zip(inputs.corpora, found, strict=True):
        share = len(rejected) / max(corpus.images, 1)
        if rejected:
            log.warning(
                "%-12s %d images of %s (%.2f %%) are unreadable", "features", len(rejected), corpus.root, 100 * share
            )
        if share > inputs.config.label.max_rejected:
            inputs.store.write_table("rejected.parquet", label.rejected_table(rejected))
            first = "; ".join(f"{i}: {r}" for i, r in sorted(rejected.items())[:3])
            raise JobError(
                f"{len(rejected)} of {corpus.images} images under {corpus.root} are unreadable, more than "
                f"label.max_rejected = {inputs.config.label.max_rejected}; mend them or raise it. "
                f"All are in {inputs.store.join('rejected.parquet')}; the first: {first}."
            )
    return found[0]


def _rejected(inputs: Inputs, corpus: Corpus) -> dict[str, str]:
    found: dict[str, str] = {}
    for spec in inputs.specs.values():
        found |= rejected_images(feature_artifact(inputs.store, spec), corpus.shards)
    return found


def _learn(inputs: Inputs, variant: str, rejected: dict[str, str], work: _Work) -> dict[str, Artifact]:
    """Everything between features and predictions for one variant."""
    config, compute = inputs.config, inputs.config.compute
    classnames, template = inputs.classnames, inputs.config.template
    labelers = inputs.labelers(variant)
    log.info("%-12s %s: labeled by %s, learned for %s", "variant", variant, _names(labelers), inputs.target.name)
    texts = [text_artifact(inputs.store, s, classnames, template) for s in labelers]
    pseudo = label.pseudo_label_artifact(inputs.store, labelers, classnames, template)
    if any(t.manifest() is None for t in texts):
        work.start(config)
        encode_classnames(inputs.store, labelers, classnames, template, compute)
    if label.unfinished(inputs.corpora, pseudo):
        work.start(config)
    label.pseudo_label(inputs.corpora, labelers, classnames, template, compute)
    selection = _select(inputs, pseudo)
    views = view_artifact(inputs.store, selection, inputs.target, config.views)
    if views.manifest() is None:
        work.start(config)
        make_views(inputs.corpus, selection, inputs.target, config.views, compute)
    members = member_artifact(inputs.store, views, inputs.target, classnames, config.train)
    if unfinished_members(members, config.train):
        work.start(config)
    if members.manifest() is None or unfinished_members(members, config.train):
        train.train_members(train.Task(members, selection, views, inputs.target, classnames, config.train, compute))
    else:
        log.info("%-12s already there: %d members of %s", "training", config.train.members, variant)
    classifier = _export(inputs, variant, members)
    predictions = label.prediction_artifact(inputs.store, classifier, inputs.target)
    if label.unfinished(inputs.corpora, predictions):
        work.start(config)
    label.predict(inputs.corpora, classifier, inputs.target, rejected, compute)
    return {
        "pseudo": pseudo,
        "selection": selection,
        "views": views,
        "members": members,
        "classifier": classifier,
        "predictions": predictions,
    }


def _names(specs: list[ClipSpec]) -> str:
    return ", ".join(s.name for s in specs)


def _select(inputs: Inputs, pseudo: Artifact) -> Artifact:
    """The top-K of every class over the whole corpus: a stream of shards, of which C * K rows stay."""
    k = inputs.config.label.top_k
    identity = {"version": SELECTION_VERSION, "labels": pseudo.fingerprint, "corpus": inputs.corpus.digest, "top_k": k}
    artifact = Artifact(inputs.store, "selection", fingerprint(identity))
    if artifact.manifest() is None:
        columns = ["image_id", "pseudo_label", "confidence"]
        with ThreadPoolExecutor(IO_THREADS) as pool:
            parts = pool.map(lambda s: pseudo.read_shard(s.state, columns), inputs.corpus.shards)
            chosen = pseudo_labels.top_k((p for p in parts if p.num_rows), k)
        inputs.store.write_table(artifact.name("selection.parquet"), chosen)
        counts = pseudo_labels.samples_per_class(chosen, len(inputs.classnames))
        artifact.finish(images=chosen.num_rows, top_k=k, samples_per_class=counts)
    manifest = artifact.manifest()
    assert manifest is not None
    starved = [inputs.classnames[c] for c, n in enumerate(manifest["samples_per_class"]) if n == 0]
    log.info("%-12s %d images, top %d of %d classes", "selection", manifest["images"], k, len(inputs.classnames))
    if starved:
        log.warning("%-12s %d class(es) got no image: %s", "selection", len(starved), ", ".join(starved[:10]))
    return artifact


def _export(inputs: Inputs, variant: str, members: Artifact) -> Artifact:
    """Put the members into one classifier file."""
    recipe = inputs.config.train
    identity = {
        "version": CLASSIFIER_VERSION,
        "members": members.fingerprint,
        "count": recipe.members,
        "ensemble": recipe.ensemble,
    }
    artifact = Artifact(inputs.store, "classifier", fingerprint(identity))
    if artifact.manifest() is None:
        tensors = read_members(members, recipe)
        data = ensemble_bytes(
            inputs.target,
            torch.stack([t["text_features"] for t in tensors]),
            torch.stack([t["ctx"] for t in tensors]),
            classnames=list(inputs.classnames),
            logit_scale=float(tensors[0]["logit_scale"]),
            ensemble=recipe.ensemble,
            variant=variant,
            members=members.folder,
        )
        inputs.store.write(artifact.name(FILE), data)
        artifact.finish(members=members.folder, variant=variant, classnames=list(inputs.classnames))
    return artifact


def _score(inputs: Inputs, variants: dict[str, dict[str, Artifact]]) -> dict[str, Any]:
    """Scores of each variant; nothing in here flows back into a step."""
    config = inputs.config
    sources = {"corpus": (inputs.corpus, config.corpus.labels)}
    if inputs.scored:
        sources["scored"] = (inputs.scored, config.scored.labels)
    scores: dict[str, Any] = {}
    for variant, made in variants.items():
        identity = {
            "version": SCORE_VERSION,
            "predictions": made["predictions"].fingerprint,
            "sources": {n: [c.digest, labels] for n, (c, labels) in sources.items()},
        }
        artifact = Artifact(inputs.store, "scores", fingerprint(identity))
        if artifact.manifest() is None:
            labelers = sorted(s.name for s in inputs.labelers(variant))
            chosen = inputs.store.read_table(made["selection"].name("selection.parquet"))
            artifact.finish(
                labelers=labelers,
                selection=score.score_selection(chosen, config.corpus.labels, inputs.classnames),
                zero_shot={
                    n: score.score_zero_shot(c, labels, made["pseudo"], labelers, inputs.classnames)
                    for n, (c, labels) in sources.items()
                },
                predictions={
                    n: score.score_predictions(c, labels, made["predictions"], inputs.classnames)
                    for n, (c, labels) in sources.items()
                },
            )
        manifest = artifact.manifest()
        assert manifest is not None
        scores[variant] = {k: manifest[k] for k in ("labelers", "selection", "zero_shot", "predictions")}
    return scores
