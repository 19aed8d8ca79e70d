"""The predictions for a corpus as it is now: where they lie, what they look like as a whole, how they have grown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from upl_ray import drift
from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.corpus import Corpus
from upl_ray.features import feature_artifact
from upl_ray.rejected import rejected_table

VERSION = 2  # raise when the same features give other predictions, or their commits say other things


def prediction_artifact(corpus: Corpus, classifier: Artifact, spec: ClipSpec) -> Artifact:
    """Where the predictions of a classifier for a corpus lie; they grow with it."""
    store = corpus.artifact.store
    upstream = [classifier.fingerprint, feature_artifact(store, spec).fingerprint, corpus.artifact.fingerprint]
    return Artifact(store, "predictions", fingerprint({"version": VERSION, "upstream": upstream}))


def publish(artifact: Artifact, corpus: Corpus, rejected: dict[str, str], classifier: Artifact) -> dict[str, Any]:
    """Bring the manifest up to date with the committed shards, and return it.

    It lists the files that hold the predictions of the corpus as it is now (`parts`) and says what the newest images
    look like beside all before (`growth`, see `drift.compare`; None the first time). Every growth also stays in a file
    of its own. The `rejected` images (id -> reason) are written beside it.
    """
    states, before = [s.state for s in corpus.shards], artifact.manifest()
    if before and before["shards"] == states and before["rejected"] == len(rejected):
        return before
    commits = artifact.read_commits(states)
    known = {state.partition("-")[0] for state in before["shards"]} if before else set()
    pairs = zip(corpus.shards, commits, strict=True)
    new = drift.total(commit["figures"] for shard, commit in pairs if shard.id not in known)
    growth = before and before["growth"]
    if before and new["images"] + new["rejected"]:
        manifest = classifier.manifest()
        assert manifest is not None
        growth = _grow(growth, new, before["figures"], tuple(manifest["classnames"]))
        artifact.store.write_json(artifact.name(f"growth/{fingerprint(states)}.json"), growth)
    files = artifact.write_file("rejected.parquet", rejected_table(rejected))
    return artifact.finish(
        files=files,
        classifier=classifier.folder,
        images=sum(c["rows"] for c in commits),
        new=new["images"],
        rejected=len(rejected),
        parts=[part for c in commits for part in c["parts"]],
        shards=states,
        figures=drift.total(c["figures"] for c in commits),
        growth=growth,
    )


def _grow(
    last: dict[str, Any] | None, new: drift.Figures, old: drift.Figures, names: tuple[str, ...]
) -> dict[str, Any]:
    """The newest images beside all before; few ones wait for more to come, beside what was there before the first."""
    if last and last["figures"]["images"] < drift.ENOUGH:
        new, old = drift.total([last["figures"], new]), last["before"]
    compared = drift.compare(new, old, names) if new["images"] and old["images"] else None
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return {"time": time, "figures": new, "before": old, "drift": compared}
