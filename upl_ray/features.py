"""Image features in storage: one folder a backbone for all corpora, since shards are content-addressed.

Shapes: n images, D feature width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from upl_ray import schema
from upl_ray.artifacts import IO_THREADS, Artifact, Store, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.corpus import Shard

VERSION = 2  # raise when stored features change


def feature_artifact(store: Store, spec: ClipSpec) -> Artifact:
    """Where the features of a backbone lie: one folder for all corpora, since shards are content-addressed."""
    return Artifact(store, f"features-{spec.name}", fingerprint({"version": VERSION, "clip": spec.identity()}))


def missing_shards(artifact: Artifact, shards: Iterable[Shard]) -> set[str]:
    """Ids of those shards whose features are not there: never computed, or dropped."""
    return {s.id for s in shards} - artifact.committed()


def forgotten_shards(artifact: Artifact, shards: Iterable[Shard]) -> set[str]:
    """Ids of those shards of which not even the rejected images are known: never computed, or repaired."""
    dropped = artifact.store.names(artifact.name("dropped"))
    return missing_shards(artifact, shards) - {n.removesuffix(".json") for n in dropped}


def drop_features(artifact: Artifact, shards: Iterable[Shard]) -> int:
    """Delete the features of these shards, and remember which images were rejected; returns how many shards.

    The commit goes first: without it nothing reads the parts, so a kill in between leaves orphans and no half shard.
    """
    there = sorted({s.id for s in shards} & artifact.committed())

    def drop(shard: str) -> None:
        commit = artifact.read_commit(shard)
        artifact.write_sealed(f"dropped/{shard}.json", {"rejected": commit["rejected"]})
        artifact.store.delete(artifact.name(f"commits/{shard}.json"))
        for part in commit["parts"]:
            artifact.store.delete(artifact.name(part))

    with ThreadPoolExecutor(IO_THREADS) as pool:
        list(pool.map(drop, there))
    return len(there)


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


def rejected_of(artifact: Artifact, shard: Shard) -> dict[str, str]:
    """Image id -> reason, for the rejected images of a shard whose features are there."""
    return dict(artifact.read_commit(shard.id)["rejected"])


def rejected_images(artifact: Artifact, shards: Iterable[str]) -> dict[str, dict[str, str]]:
    """Shard id -> image id -> reason, for the images that could not be read; also where features were dropped."""
    there, ids = artifact.committed(), sorted(set(shards))

    def read(shard: str) -> dict[str, str]:
        folder = "commits" if shard in there else "dropped"
        return dict(artifact.read_sealed(f"{folder}/{shard}.json")["rejected"])

    with ThreadPoolExecutor(IO_THREADS) as pool:
        return dict(zip(ids, pool.map(read, ids), strict=True))
