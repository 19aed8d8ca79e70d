"""The predictions for a corpus as it is now: where they lie, what they look like as a whole, how they have grown."""

from __future__ import annotations

from collections.abc import Set
from datetime import UTC, datetime
from typing import Any

from upl_ray import drift
from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.corpus import Corpus
from upl_ray.features import feature_artifact
from upl_ray.predict_config import Drift
from upl_ray.rejected import rejected_table

VERSION = 3  # raise when the same features give other predictions, or their commits say other things


def prediction_artifact(corpus: Corpus, classifier: Artifact, spec: ClipSpec) -> Artifact:
    """Where the predictions of a classifier for a corpus lie; they grow with it."""
    store = corpus.artifact.store
    upstream = [classifier.fingerprint, feature_artifact(store, spec).fingerprint, corpus.artifact.fingerprint]
    return Artifact(store, "predictions", fingerprint({"version": VERSION, "upstream": upstream}))


def publish(
    artifact: Artifact, corpus: Corpus, rejected: dict[str, str], classifier: Artifact, limits: Drift
) -> dict[str, Any]:
    """Bring the manifest up to date with the committed shards, and return it.

    It lists the files that hold the predictions of the corpus as it is now (`parts`), the new shards that still wait to
    be enough for a comparison (`waiting`), and the newest comparison of new images with all before (`drift`, see
    `drift.compare`; None as long as there was none). Every growth also stays in a file of its own. The `rejected`
    images (id -> reason) are written beside it.
    """
    states, before = [s.state for s in corpus.shards], artifact.manifest()
    if before and before["shards"] == states and before["rejected"] == len(rejected):
        return before
    commits = artifact.read_commits(states)
    figures = {shard.id: commit["figures"] for shard, commit in zip(corpus.shards, commits, strict=True)}
    known = {state.partition("-")[0] for state in before["shards"]} if before else figures.keys()
    added = figures.keys() - known
    listed_before = drift.listed(before["figures"]) if before else 0
    still = drift.listed(drift.total(figures[i] for i in figures.keys() & known))
    about = _grow(before, figures, added, classifier, limits)
    if before:
        artifact.store.write_json(artifact.name(f"growth/{fingerprint(states)}.json"), about)
    files = artifact.write_file("rejected.parquet", rejected_table(rejected))
    return artifact.finish(
        files=files,
        classifier=classifier.folder,
        images=sum(c["rows"] for c in commits),
        new=sum(figures[i]["images"] for i in added) if before else drift.total(figures.values())["images"],
        removed=listed_before - still if before else 0,
        listed_before=listed_before,
        rejected=len(rejected),
        parts=[part for c in commits for part in c["parts"]],
        shards=states,
        figures=drift.total(figures.values()),
        **about,
    )


def _grow(
    before: dict[str, Any] | None,
    figures: dict[str, drift.Figures],
    added: Set[str],
    classifier: Artifact,
    limits: Drift,
) -> dict[str, Any]:
    """The new shards beside all others, as they are now; too few images wait, and the last comparison stands."""
    waiting = added | (set(before["waiting"]) & figures.keys() if before else set())
    new = drift.total(figures[i] for i in sorted(waiting))
    old = drift.total(figures[i] for i in sorted(figures.keys() - waiting))
    if not drift.can_compare(new, limits) or not drift.listed(old):
        return {"waiting": sorted(waiting), "drift": before and before["drift"]}
    manifest = classifier.manifest()
    assert manifest is not None
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return {"waiting": [], "drift": {"time": time, **drift.compare(new, old, tuple(manifest["classnames"]))}}
