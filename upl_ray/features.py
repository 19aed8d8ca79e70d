"""Image features in storage: one folder a backbone for all corpora, since shards are content-addressed.

Shapes: n images, D feature width.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from upl_ray import schema
from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.corpus import Corpus, Shard

VERSION = 1  # raise when stored features change


def feature_artifact(store: Store, spec: ClipSpec) -> Artifact:
    """Where the features of a backbone lie: one folder for all corpora, since shards are content-addressed."""
    return Artifact(store, f"features-{spec.name}", fingerprint({"version": VERSION, "clip": spec.identity()}))


def is_embedded(corpora: list[Corpus], spec: ClipSpec) -> bool:
    """True if no shard of the corpora lacks this backbone's features."""
    return {s.id for c in corpora for s in c.shards} <= feature_artifact(corpora[0].artifact.store, spec).committed()


def feature_table(image_ids: list[str], features: npt.NDArray[np.float16], rejected: set[str]) -> pa.Table:
    """Rows of `schema.features`, without the rejected images."""
    keep = np.array([i not in rejected for i in image_ids], bool)
    dim = features.shape[1]
    flat = pa.array(np.ascontiguousarray(features[keep]).reshape(-1))
    ids = [i for i, k in zip(image_ids, keep, strict=True) if k]
    return pa.table(
        [pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(flat, dim)], schema=schema.features(dim)
    )


def read_features(
    artifact: Artifact, shard: Shard, without: Collection[str] = ()
) -> tuple[list[str], npt.NDArray[np.float16]]:
    """Image ids and [n, D] features of a shard, in the order of ids, without images that are gone or in `without`."""
    table = artifact.read_shard(shard.id)
    ids = table["image_id"].to_pylist()
    dim = table.schema.field("image_features").type.list_size
    features = np.asarray(table["image_features"].combine_chunks().flatten()).reshape(-1, dim)
    row = {image_id: i for i, image_id in enumerate(ids)}  # a part that was written twice counts once
    keep = sorted(i for i in row if i not in shard.removed and i not in without)
    return keep, features[[row[i] for i in keep]]


def rejected_images(artifact: Artifact, shards: tuple[Shard, ...]) -> dict[str, str]:
    """Image id -> reason, for the images of these shards that could not be read."""
    commits = artifact.read_commits(s.id for s in shards)
    pairs = zip(shards, commits, strict=True)
    return {i: r for shard, c in pairs for i, r in c["rejected"].items() if i not in shard.removed}
