"""The story of a run: each step reads finished artifacts and makes one; what is in storage already is not made again.

corpus -> features -> text -> labels -> selection -> views -> members -> classifier -> predictions -> scores
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from typing import Any

import ray
import torch

from upl_ray import label, score, train
from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Config, JobError
from upl_ray.corpus import Corpus
from upl_ray.embed import embed
from upl_ray.encode_text import encode_classnames
from upl_ray.ensemble import FILE, ensemble_bytes
from upl_ray.features import drop_features, feature_artifact, rejected_images
from upl_ray.forecast import forecast
from upl_ray.inputs import Inputs, prepare
from upl_ray.members import read_members, unfinished_members
from upl_ray.plan import Chain, needed_features, plan_chain, present_features
from upl_ray.progress import duration
from upl_ray.selection import select
from upl_ray.text_features import text_artifact
from upl_ray.views import make_views

log = logging.getLogger(__name__)

SCORE_VERSION = 1


def run(config: Config) -> dict[str, Any]:
    """Run the whole job, or what is missing of it, and return its summary.

    Raises:
        ConfigError: the configuration cannot work; nothing was started.
        JobError: too many images are unreadable, or work was lost; what is finished stays in storage.
    """
    started = time.monotonic()
    inputs = prepare(config)
    before = Work()
    chains: dict[str, Chain] = {v: plan_chain(inputs, v) for v in config.variants}
    rejected = embed_corpora(inputs, chains, before)
    for variant, chain in chains.items():
        _learn(inputs, variant, chain, rejected, before)
    scores = _score(inputs, chains)
    _drop(inputs)
    first = chains[config.variants[0]]
    summary = {
        "status": "done" if before.any else "already done",
        "seconds": round(time.monotonic() - started, 1),
        "storage": inputs.store.uri,
        "classifier": first.classifier.uri,
        "classifiers": {v: chain.classifier.uri for v, chain in chains.items()},
        "predictions": first.predictions.uri,
        "target": inputs.target.name,
        "images": inputs.corpus.images,
        "rejected": len(rejected),
        "rejected_by_reason": rejected_by_reason(rejected),
        "starved_classes": scores[config.variants[0]]["selection"]["starved"],
        "scores": scores,
    }
    inputs.store.write_json("run.json", summary)
    log.info("%-12s %s in %s", "job", summary["status"], duration(time.monotonic() - started))
    return summary


class Work:
    """Starts Ray at the first step that has something to do."""

    def __init__(self) -> None:
        self.any = False

    def start(self, config: Config) -> None:
        """Join the configured cluster, or start a local one, unless that was done."""
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


def embed_corpora(inputs: Inputs, chains: dict[str, Chain], work: Work) -> dict[str, str]:
    """Features that are needed; returns those images of the corpus that could not be read, with their reasons."""
    specs = list(inputs.specs.values())
    needed = needed_features(inputs, chains)
    if present_features(inputs, needed):
        log.info("%-12s already there: %d backbone(s), %d shard(s)", "features", len(specs), len(inputs.corpus.shards))
    else:
        work.start(inputs.config)
        for line in forecast(inputs, needed, ray.cluster_resources()):
            log.info("%-12s %s", "estimate", line)
        embed(inputs.corpora, specs, inputs.config.compute, needed)
    for spec in specs:
        artifact = feature_artifact(inputs.store, spec)
        if artifact.manifest() is None:
            artifact.finish(backbone=spec.backbone.model_dump(), identity=spec.identity())
    found = [_rejected(inputs, corpus) for corpus in inputs.corpora]
    for corpus, rejected in zip(inputs.corpora, found, strict=True):
        _check_rejected(inputs, corpus, rejected)
    return found[0]


def _rejected(inputs: Inputs, corpus: Corpus) -> dict[str, str]:
    found: dict[str, str] = {}
    for spec in inputs.specs.values():
        found |= rejected_images(feature_artifact(inputs.store, spec), corpus.shards)
    return found


def _check_rejected(inputs: Inputs, corpus: Corpus, rejected: dict[str, str]) -> None:
    if not rejected:
        return
    share = len(rejected) / corpus.images
    reasons = ", ".join(f"{n} {reason}" for reason, n in rejected_by_reason(rejected).items())
    log.warning("%-12s %d images of %s (%.2f %%): %s", "rejected", len(rejected), corpus.name, 100 * share, reasons)
    if share > inputs.config.label.max_rejected:
        inputs.store.write_table("rejected.parquet", label.rejected_table(rejected))
        first = "; ".join(f"{i}: {r}" for i, r in sorted(rejected.items())[:3])
        raise JobError(
            f"{len(rejected)} of {corpus.images} images under {corpus.name} are unreadable, more than "
            f"label.max_rejected = {inputs.config.label.max_rejected}; mend them or raise it. "
            f"All are in {inputs.store.join('rejected.parquet')}; the first: {first}."
        )


def rejected_by_reason(rejected: dict[str, str]) -> dict[str, int]:
    """How many images were rejected for each kind of reason, the most frequent first; details are left out."""
    return dict(Counter(reason.partition(":")[0] for reason in rejected.values()).most_common())


def _learn(inputs: Inputs, variant: str, chain: Chain, rejected: dict[str, str], work: Work) -> None:
    """Everything between features and predictions for one variant."""
    config, compute, target = inputs.config, inputs.config.compute, inputs.target
    log.info(
        "%-12s %s: labeled by %s, learned for %s", "variant", variant, _names(inputs.labelers(variant)), target.name
    )
    label_corpora(inputs, inputs.labelers(variant), config.template, work)
    select_images(inputs, chain.pseudo, chain.selection, config.label.top_k, work)
    if chain.views.manifest() is None:
        work.start(config)
        make_views(inputs.corpus, chain.selection, target, config.views, compute)
    if unfinished_members(chain.members, config.train):
        work.start(config)
    if chain.members.manifest() is None or unfinished_members(chain.members, config.train):
        task = train.Task(chain.members, chain.selection, chain.views, target, inputs.classnames, config.train, compute)
        train.train_members(task)
    else:
        log.info("%-12s already there: %d members of %s", "training", config.train.members, variant)
    _export(inputs, variant, chain)
    if label.unfinished(inputs.corpora, chain.predictions):
        work.start(config)
    label.predict(inputs.corpora, chain.classifier, target, rejected, compute)


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


def label_corpora(inputs: Inputs, labelers: list[ClipSpec], template: str | tuple[str, ...], work: Work) -> Artifact:
    """Pseudo-labels of all images by some labelers: their class features first, then every shard that has none."""
    store, classnames, compute = inputs.store, inputs.classnames, inputs.config.compute
    if any(text_artifact(store, s, classnames, template).manifest() is None for s in labelers):
        work.start(inputs.config)
        encode_classnames(store, labelers, classnames, template, compute)
    if label.unfinished(inputs.corpora, label.pseudo_label_artifact(store, labelers, classnames, template)):
        work.start(inputs.config)
    return label.pseudo_label(inputs.corpora, labelers, classnames, template, compute)


def select_images(inputs: Inputs, pseudo: Artifact, selection: Artifact, k: int, work: Work) -> None:
    """The top-K of every class, and a word about classes that got nothing."""
    n_classes = len(inputs.classnames)
    if selection.manifest() is None:
        work.start(inputs.config)
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
    inputs.store.write(artifact.name(FILE), data)
    artifact.finish(members=chain.members.folder, variant=variant, classnames=list(inputs.classnames))


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
            "sources": {n: [c.digest, labels] for n, (c, labels) in sources.items()},
        }
        artifact = Artifact(inputs.store, "scores", fingerprint(identity))
        if artifact.manifest() is None:
            labelers = sorted(s.name for s in inputs.labelers(variant))
            chosen = inputs.store.read_table(chain.selection.name("selection.parquet"))
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
