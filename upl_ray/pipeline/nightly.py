"""The nightly job: a finished classifier labels a growing corpus; only new and changed images cost anything.

corpus -> features of one backbone -> predictions -> the new images beside all before
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from upl_ray.cluster.connect import RayCluster
from upl_ray.cluster.preflight import preflight
from upl_ray.config.settings import Backbone, Drift, Predict
from upl_ray.corpus.shards import Corpus, Shard, read_corpus
from upl_ray.errors import ConfigError, describe_error
from upl_ray.pipeline import drift
from upl_ray.pipeline.classifier import find_classifier
from upl_ray.pipeline.features import (
    by_reason,
    check_rejected,
    check_some_images,
    drop_features,
    feature_step,
    find_rejected,
    forgotten_shards,
    make_features,
    missing_shards,
)
from upl_ray.pipeline.inputs import list_images, open_storage
from upl_ray.pipeline.plan import forget_lost
from upl_ray.pipeline.predictions import make_predictions, prediction_step, publish
from upl_ray.pipeline.shardwise import shards_without_rows, unfinished_shards
from upl_ray.progress import duration
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.upl.classifier import classifier_spec
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.ensemble import Ensemble
from upl_ray.upl.tally import Tally, total

log = logging.getLogger(__name__)

SUMMARY = "predict-run.json"  # the last line of the last run


@dataclass(frozen=True)
class Inputs:
    """A configuration that was checked against the world."""

    corpus: Corpus
    spec: ClipSpec
    classifier: Step
    features: Step
    predictions: Step

    @property
    def store(self) -> Store:
        """Where features and predictions lie."""
        return self.corpus.step.store


def run(job: Predict) -> dict[str, Any]:
    """Label what is new, and return a summary, which is also kept in storage: that of a failed run says why.

    Raises:
        ConfigError: the configuration cannot work; nothing was started.
        JobError: too many images are unreadable, or work was lost; what is finished stays in storage.
    """
    started = time.monotonic()
    classifier, ensemble = find_classifier(job.classifier)
    store = open_storage(job.storage_path or classifier.store.uri, "predict.json", job)
    with ExitStack() as stack:
        stack.push(partial(_tell_failure, store))
        cluster = RayCluster(job.compute)
        inputs = prepare(job, store, classifier, ensemble, cluster)
        summary = _label(job, inputs, cluster)
    summary |= {"seconds": round(time.monotonic() - started, 1), "time": _now()}
    store.write_json(SUMMARY, summary)
    log.info("%-12s %s in %s", "job", summary["status"], duration(summary["seconds"]))
    return summary


def _label(job: Predict, inputs: Inputs, cluster: RayCluster) -> dict[str, Any]:
    """Embed, classify and publish what is new."""
    corpus, spec, compute = inputs.corpus, inputs.spec, job.compute
    cluster.check_nodes(lambda: preflight(inputs.store, [corpus], [spec], compute, inputs.classifier.uri))
    forget_lost([inputs.features, inputs.predictions])
    todo = unfinished_shards([corpus], inputs.predictions)
    with cluster.watched():
        snapshot, rejected = _embed(inputs, _needed(inputs, todo, job), job, cluster)
        if todo:
            cluster.start("predictions")
        make_predictions(inputs.predictions, todo, inputs.classifier, inputs.features, compute)
    superseded = read_corpus(corpus.step).digest != corpus.digest  # by a run that has listed the images since
    night = publish_night(inputs.predictions, corpus, inputs.classifier, job.drift, bool(todo), superseded)
    if job.keep_features == "none":
        drop_features(inputs.features, corpus.shards)
    status = "done" if cluster.used else "already done"
    places = {"storage": inputs.store.uri, "classifier": inputs.classifier.uri, "predictions": inputs.predictions.uri}
    about = {"images": corpus.images, "rejected": len(rejected), "rejected_by_reason": by_reason(rejected)}
    about["left_out"] = {"corpus": dict(corpus.left_out.counts)}
    return {"status": status, **places, "snapshot": snapshot.uri, **about, **night}


def _tell_failure(store: Store, kind: object, error: BaseException | None, trace: object) -> None:
    """Leave the reason where yesterday's summary would look like tonight's; the error itself goes on.

    A run that was stopped is no failure.
    """
    if not isinstance(error, Exception):
        return
    try:
        store.write_json(
            SUMMARY, {"status": "failed", "error": describe_error(error), "storage": store.uri, "time": _now()}
        )
    except OSError as second:  # often for the same reason; the first one is what the job ends with
        log.warning("%-12s %s cannot be written (%s)", "job", store.join(SUMMARY), second)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def prepare(job: Predict, store: Store, classifier: Step, ensemble: Ensemble, cluster: RayCluster) -> Inputs:
    """Find the classifier's image encoder and the images, before work starts.

    Raises:
        ConfigError: one of them is not found or does not fit.
    """
    about = Backbone(**ensemble.metadata["backbone"])
    changes = {k: v for k, v in {"model": job.model, "pretrained": job.pretrained}.items() if v}
    spec = classifier_spec(ensemble, about.model_copy(update={"name": about.label, **changes}))
    strangers = sorted(set(job.compute.pools) - {spec.name})
    if strangers:
        raise ConfigError(f"compute.pools names {strangers[0]!r}, but the only backbone is {spec.name!r}; use that.")
    corpus = list_images(store, job.corpus, job.compute, "corpus", cluster)
    log.info("%-12s %d images, %d of them new", "corpus", corpus.images, corpus.added)
    log.info("%-12s %s, %d classes", "classifier", classifier.uri, len(ensemble.classnames))
    features = feature_step(store, spec)
    return Inputs(corpus, spec, classifier, features, prediction_step(corpus, classifier, features))


def _needed(inputs: Inputs, todo: list[Shard], job: Predict) -> list[Shard]:
    """The shards whose features must be in storage."""
    if job.keep_features != "none":
        return list(inputs.corpus.shards)
    forgotten = forgotten_shards(inputs.features, inputs.corpus.shards)
    return shards_without_rows(todo, inputs.predictions) + [s for s in inputs.corpus.shards if s.id in forgotten]


def _embed(inputs: Inputs, needed: Iterable[Shard], job: Predict, cluster: RayCluster) -> tuple[Step, dict[str, str]]:
    """Features of the needed shards; returns the corpus' snapshot and its unreadable images with their reasons."""
    ids = missing_shards(inputs.features, needed)
    if ids:
        check_some_images([inputs.corpus], ids, job.max_rejected, inputs.spec.geometry)
        cluster.start("features")
        name = inputs.spec.name
        make_features([inputs.corpus], [inputs.spec], {name: inputs.features}, job.compute, {name: ids})
    if not inputs.features.finished:
        inputs.features.finish(backbone=inputs.spec.backbone.model_dump(), identity=inputs.spec.identity())
    (rejected,) = find_rejected([inputs.features], [inputs.corpus])
    return check_rejected(inputs.corpus, rejected, "max_rejected", job.max_rejected), rejected


def publish_night(
    step: Step, corpus: Corpus, classifier: Step, limits: Drift, remade: bool = False, superseded: bool = False
) -> dict[str, Any]:
    """Compare the new images with all before, bring the manifest of predictions up to date, and return the findings.

    The comparison stays in the manifest until the images change again: a scheduler that missed its alerts sees them in
    the next run. Of two runs at once, the one that listed the corpus later publishes.
    """
    before = step.find_manifest()
    changed = before is None or before["shards"] != [s.state for s in corpus.shards]
    if before and superseded:
        log.warning("%-12s not published: a newer run has listed the images since, and publishes", "predictions")
        changed, manifest = False, before
    else:
        night = (
            _compare(step, corpus, classifier, before, limits) if before and changed else (before or {}).get("drift")
        )
        manifest = publish(step, corpus, classifier, remade, drift=night)
    night = manifest.get("drift")  # the main job publishes without one
    alerts = drift.alerts(night, limits) if night else []
    for alert in alerts:
        log.warning("%-12s %s", "drift", alert)
    if night and "note" in night:
        log.info("%-12s %s", "drift", night["note"])
    means = Tally.from_json(manifest["tally"]).means()
    return {
        "new": (night["new"] if night else corpus.images) if changed else 0,
        "removed": night["removed"] if night and changed else 0,
        **{f"mean_{name}": value for name, value in means.items()},
        "drift": night,
        "alerts": alerts,
    }


def _compare(step: Step, corpus: Corpus, classifier: Step, before: dict[str, Any], limits: Drift) -> dict[str, Any]:
    """The images of shards that the last manifest does not name, beside all that it was written for."""
    known = {state.partition("-")[0] for state in before["shards"]}
    fresh = [s.state for s in corpus.shards if s.id not in known]
    new = total(Tally.from_json(commit["tally"]) for commit in step.read_commits(fresh))
    old = Tally.from_json(before["tally"])
    removed = max(0, old.listed + new.listed - corpus.images)
    classnames = tuple(classifier.manifest()["classnames"])
    return {"time": _now(), **drift.compare(new, old, removed, limits, classnames)}
