"""The predictions for a corpus as it is now: where they lie, what they look like as a whole, how they have grown."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.corpus import Corpus, read_corpus
from upl_ray.features import feature_artifact
from upl_ray.figures import total
from upl_ray.growth import Growth, carry_over, compare, grow, start
from upl_ray.integrity import Damaged
from upl_ray.predict_config import Drift
from upl_ray.rejected import rejected_table

log = logging.getLogger(__name__)

VERSION = 4  # raise when the same features give other predictions, or their commits say other things


@dataclass(frozen=True)
class Published:
    """The manifest of predictions that is in storage after a run."""

    manifest: dict[str, Any]
    changed: bool  # by this run, as the images are others than those before
    superseded: bool = False  # it is a newer run's


def prediction_artifact(corpus: Corpus, classifier: Artifact, spec: ClipSpec) -> Artifact:
    """Where the predictions of a classifier for a corpus lie; they grow with it."""
    store = corpus.artifact.store
    upstream = [classifier.fingerprint, feature_artifact(store, spec).fingerprint, corpus.artifact.fingerprint]
    return Artifact(store, "predictions", fingerprint({"version": VERSION, "upstream": upstream}))


def publish(
    artifact: Artifact,
    corpus: Corpus,
    rejected: dict[str, str],
    classifier: Artifact,
    limits: Drift | None = None,
) -> Published:
    """Bring the manifest up to date with the committed shards.

    It lists the files that hold the predictions of the corpus as it is now (`parts`), and what the nights have seen of
    it so far (`growth`). Every growth also stays in a file of its own. The `rejected` images (id -> reason) are written
    beside it. Only a job with `limits` compares; what is new to another one waits for it.
    """
    states, own = [s.state for s in corpus.shards], artifact.manifest()
    here = {"shards": states, "rejected": len(rejected)}
    if own and not limits and here.items() <= own.items():
        return Published(own, changed=False)
    last = _newest(artifact, corpus, own)
    changed = not (own and last and last["fingerprint"] == artifact.fingerprint and here.items() <= own.items())
    # Of two runs at once, the one that listed later knows more: nothing that it knows must be lost.
    stale = read_corpus(corpus.artifact).digest != corpus.digest
    facts = _facts(artifact, corpus, classifier, here, last, own, stale) if changed or not own else own
    growth: Growth = facts["growth"]
    if limits:
        about = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "classifier": classifier.folder}
        growth = compare(growth, limits, _classnames(classifier), about)
    if own and not changed and growth == own["growth"]:
        return Published(own, changed=False)
    if own and stale:
        log.warning("%-12s not published: a newer run has listed the images since, and it publishes", "predictions")
        return Published(artifact.manifest() or own, changed=False, superseded=True)
    if last:
        night = {k: v for k, v in growth.items() if k not in ("counts", "seen")}
        name = fingerprint([last["growth"]["changes"], states])  # the same again where a kill came between
        artifact.store.write_json(artifact.name(f"growth/{name}.json"), night)
    files = artifact.write_file("rejected.parquet", rejected_table(rejected))
    return Published(artifact.finish(**facts | {"files": files, "growth": growth}), changed)


def _facts(
    artifact: Artifact,
    corpus: Corpus,
    classifier: Artifact,
    here: dict[str, Any],
    last: dict[str, Any] | None,
    own: dict[str, Any] | None,
    stale: bool,
) -> dict[str, Any]:
    """What the manifest says of the committed shards, `last` being the corpus' one before, by whatever classifier."""
    commits = artifact.read_commits(s.state for s in corpus.shards)
    figures = {shard.id: commit["figures"] for shard, commit in zip(corpus.shards, commits, strict=True)}
    growth = start(figures)
    if last:
        same = last["fingerprint"] == artifact.fingerprint
        growth = last["growth"] if same else carry_over(last["growth"], figures, own and own["growth"], stale)
        growth = growth if stale else grow(growth, figures)
    return {
        "corpus": corpus.artifact.folder,
        "classifier": classifier.folder,
        "images": sum(c["rows"] for c in commits),
        "parts": [part for c in commits for part in c["parts"]],
        "figures": total(figures.values()),
        "growth": growth,
        **here,
    }


def _newest(artifact: Artifact, corpus: Corpus, own: dict[str, Any] | None) -> dict[str, Any] | None:
    """What was published last for the same corpus by any classifier; its own, unless another has seen more since."""
    store, found = artifact.store, [own] if own else []
    for folder in store.folders():
        step, _, digest = folder.rpartition("-")
        if step == artifact.step and digest != artifact.fingerprint:
            try:
                manifest = Artifact(store, step, digest).manifest()
            except Damaged as error:  # nobody needs it, and who does is told
                log.warning("%-12s %s", "predictions", error)
                continue
            if manifest and manifest.get("corpus") == corpus.artifact.folder:  # those of earlier versions do not say it
                found.append(manifest)
    newest = max(found, key=lambda m: int(m["growth"]["changes"]), default=None)  # the first of equals: its own
    if own and newest and own["shards"] == newest["shards"]:
        return own | {"growth": own["growth"] | {"changes": newest["growth"]["changes"]}}  # later than both
    return newest


def _classnames(classifier: Artifact) -> tuple[str, ...]:
    manifest = classifier.manifest()
    assert manifest is not None
    return tuple(manifest["classnames"])
