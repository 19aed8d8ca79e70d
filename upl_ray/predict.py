"""The nightly job: a finished classifier labels a growing corpus; only new and changed images cost anything.

corpus -> features of one backbone -> predictions -> figures of the new images beside all before
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

from safetensors import SafetensorError

from upl_ray import drift, integrity, label
from upl_ray.artifacts import Artifact, Store
from upl_ray.classifier import classifier_spec
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Backbone, ConfigError
from upl_ray.corpus import Corpus, Shard
from upl_ray.embed import embed
from upl_ray.ensemble import FILE, Ensemble, load_ensemble
from upl_ray.features import drop_features, feature_artifact, forgotten_shards, missing_shards
from upl_ray.figures import means, total
from upl_ray.inputs import list_images, open_storage
from upl_ray.predict_config import Predict
from upl_ray.predictions import Published, prediction_artifact, publish
from upl_ray.preflight import preflight
from upl_ray.progress import duration
from upl_ray.ray_cluster import RayCluster
from upl_ray.rejected import by_reason, check_rejected, find_rejected
from upl_ray.section import told
from upl_ray.sources import UNREACHABLE, first_line
from upl_ray.storage import absolute

log = logging.getLogger(__name__)

SUMMARY = "predict-run.json"  # what the last run's last line said


@dataclass(frozen=True)
class Inputs:
    """A configuration that was checked against the world."""

    corpus: Corpus
    spec: ClipSpec
    classifier: Artifact
    features: Artifact
    predictions: Artifact

    @property
    def store(self) -> Store:
        """Where features and predictions lie."""
        return self.corpus.artifact.store


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
        summary = _label(job, prepare(job, store, classifier, ensemble))
    summary |= {"seconds": round(time.monotonic() - started, 1), "time": _now()}
    store.write_json(SUMMARY, summary)
    log.info("%-12s %s in %s", "job", summary["status"], duration(summary["seconds"]))
    return summary


def _label(job: Predict, inputs: Inputs) -> dict[str, Any]:
    """Embed, classify and publish what is new."""
    corpus, spec, compute = inputs.corpus, inputs.spec, job.compute
    cluster = RayCluster(compute, lambda: preflight(inputs.store, [corpus], [spec], compute, inputs.classifier.uri))
    todo = label.unfinished([corpus], inputs.predictions)
    with cluster.watched():
        rejected = _embed(inputs, _needed(inputs, todo, job), job, cluster)
        if todo:
            cluster.start("predictions")
        label.predict(todo, inputs.predictions, inputs.classifier, spec, compute)
    published = publish(inputs.predictions, corpus, rejected, inputs.classifier, job.drift)
    if job.keep_features == "none":
        drop_features(inputs.features, corpus.shards)
    status = "done" if cluster.used else "already done"
    return {"status": status, "rejected_by_reason": by_reason(rejected)} | summarize(inputs, job, published)


def _tell_failure(store: Store, kind: object, error: BaseException | None, trace: object) -> None:
    """Leave the reason where yesterday's summary would look like tonight's; the error itself goes on.

    A run that was stopped is no failure.
    """
    if not isinstance(error, Exception):
        return
    try:
        store.write_json(SUMMARY, {"status": "failed", "error": told(error), "storage": store.uri, "time": _now()})
    except OSError as second:  # often for the same reason; the first one is what the job ends with
        log.warning("%-12s %s cannot be written (%s)", "job", store.join(SUMMARY), second)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def prepare(job: Predict, store: Store, classifier: Artifact, ensemble: Ensemble) -> Inputs:
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
    corpus = list_images(store, job.corpus, job.compute.shard_size, "corpus")
    log.info("%-12s %d images, %d of them new", "corpus", corpus.images, corpus.added)
    log.info("%-12s %s, %d classes", "classifier", classifier.uri, len(ensemble.classnames))
    return Inputs(
        corpus, spec, classifier, feature_artifact(store, spec), prediction_artifact(corpus, classifier, spec)
    )


def find_classifier(uri: str) -> tuple[Artifact, Ensemble]:
    """A classifier by its folder, or the newest one of a run's storage.

    Raises:
        ConfigError: neither is there.
    """
    try:
        folder = uri.rstrip("/") if "://" in uri else absolute(uri)
        store = Store(folder)
        if FILE not in store.names(""):
            folder = store.join(store.read_sealed("run.json")["classifier"].rpartition("/")[2])
        ensemble = load_ensemble(folder)
        manifest = integrity.open_json(Store(folder).read("manifest.json"), f"{folder}/manifest.json", place=None)
    except integrity.Damaged as error:
        where = str(error).partition(" is damaged")[0]
        raise ConfigError(f"{where} is damaged; run the main job (jobs/upl.py) with `--repair`.") from None
    except (*UNREACHABLE, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"There is no classifier at {uri!r} ({first_line(error)}); name a classifier's folder, or a finished run's "
            f"storage."
        ) from None
    parent, _, name = folder.rpartition("/")
    classifier = Artifact(Store(parent), manifest["step"], manifest["fingerprint"])
    if name != classifier.folder or parent.endswith(":/"):
        raise ConfigError(
            f"The classifier at {uri!r} was {classifier.folder!r} when it was made, and predictions are kept by that "
            f"name; give it back to its folder, in any other folder."
        )
    return classifier, ensemble


def _needed(inputs: Inputs, todo: list[Shard], job: Predict) -> list[Shard]:
    """The shards whose features must be in storage."""
    if job.keep_features != "none":
        return list(inputs.corpus.shards)
    forgotten = forgotten_shards(inputs.features, inputs.corpus.shards)
    return label.without_rows(todo, inputs.predictions) + [s for s in inputs.corpus.shards if s.id in forgotten]


def _embed(inputs: Inputs, needed: Iterable[Shard], job: Predict, cluster: RayCluster) -> dict[str, str]:
    """Features of the needed shards; returns the images that could not be read, with their reasons."""
    ids = missing_shards(inputs.features, needed)
    if ids:
        cluster.start("features")
        embed([inputs.corpus], [inputs.spec], job.compute, {inputs.spec.name: ids})
    if inputs.features.manifest() is None:
        inputs.features.finish(backbone=inputs.spec.backbone.model_dump(), identity=inputs.spec.identity())
    (rejected,) = find_rejected([inputs.features], [inputs.corpus])
    check_rejected(inputs.store, inputs.corpus, rejected, "max_rejected", job.max_rejected)
    return rejected


def summarize(inputs: Inputs, job: Predict, published: Published) -> dict[str, Any]:
    """What a program wants to know of a run: places, counts, figures of all images, drift of the newest, alerts."""
    manifest, growth = published.manifest, published.manifest["growth"]
    alerts = drift.alerts(growth["drift"], growth["removed"], growth["listed_before"], job.drift)
    for alert in alerts:
        log.warning("%-12s %s", "drift", alert)
    hint = drift.blind(growth["drift"], job.drift)
    if hint:
        log.info("%-12s %s", "drift", hint)
    return {
        "storage": inputs.store.uri,
        "classifier": inputs.classifier.uri,
        "predictions": inputs.predictions.uri,
        "superseded": published.superseded,
        "images": manifest["images"] + manifest["rejected"],
        "new": growth["new"] if published.changed else 0,
        "removed": growth["removed"] if published.changed else 0,
        "rejected": manifest["rejected"],
        **{f"mean_{name}": value for name, value in means(manifest["figures"]).items()},
        "waiting": total(growth["waiting"].values())["images"],
        "growth": growth["drift"] or None,
        "alerts": alerts,
    }
