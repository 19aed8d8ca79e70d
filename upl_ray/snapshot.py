"""What a finished run worked on, kept as it was: a nightly job lists the corpus anew, and no report may change with it.

Only names of shards and what is gone from them are kept; listings, pseudo-labels and predictions of every state stay in
storage anyhow.
"""

from __future__ import annotations

from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.corpus import Corpus, shard_of
from upl_ray.rejected import rejected_table

VERSION = 1  # raise when the same corpus gives another snapshot
REJECTED = "rejected.parquet"


def keep_snapshot(corpus: Corpus, rejected: dict[str, str]) -> Artifact:
    """Store a corpus as it is now, and its images that could not be read (id -> reason), unless that was done."""
    about = {"corpus": corpus.artifact.fingerprint, "labels": corpus.labels_digest, "rejected": rejected}
    artifact = Artifact(corpus.artifact.store, "snapshot", fingerprint({"version": VERSION, **about}))
    if artifact.manifest() is None:
        files = artifact.write_file(REJECTED, rejected_table(rejected))
        shards = [s.record() for s in corpus.shards]
        artifact.finish(files=files, roots=list(corpus.roots), images=corpus.images, shards=shards)
    return artifact


def read_snapshot(artifact: Artifact) -> Corpus:
    """The corpus of a snapshot.

    Raises:
        FileNotFoundError: there is none.
    """
    manifest = artifact.read_sealed("manifest.json")
    return Corpus(artifact, tuple(manifest["roots"]), tuple(map(shard_of, manifest["shards"])))
