"""The view bank with Ray Data: augmented views of the selected images, encoded once for all members and reruns.

The image encoder is frozen, so a view needs encoding once however many members and epochs use it.

    from_items          root, listing, image_ids            one row for some selected images of a shard
    flat_map (CPU)      image_id, pixels_HxW [V, H, W, 3]   one row an image
    map (actors)        + views [V, D], - pixels            the target's pool
    map_batches (CPU)   part, image_ids                     views written, receipts returned
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor

from upl_ray import images, schema
from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Compute, JobError, Views
from upl_ray.corpus import Corpus
from upl_ray.embed import Encoder
from upl_ray.pools import add_pool, configure_data, in_one_sentence, needs_of, plan
from upl_ray.progress import Progress
from upl_ray.reading import read_each

VERSION = 1  # raise when the same images give other views
IMAGES_PER_TASK = 16  # 16 images x 50 views x 224 x 224 pixels are 120 MB


def view_artifact(store: Store, selection: Artifact, spec: ClipSpec, views: Views) -> Artifact:
    """Where the views of a selection lie; the training recipe does not touch them."""
    identity = {
        "version": VERSION,
        "selection": selection.fingerprint,
        "clip": spec.identity(),
        "views": views.model_dump(),
    }
    return Artifact(store, "views", fingerprint(identity))


def make_views(corpus: Corpus, selection: Artifact, spec: ClipSpec, views: Views, compute: Compute) -> Artifact:
    """Encode `views.count` random crops of each selected image, or its centre crop if that is 0."""
    store = corpus.artifact.store
    artifact = view_artifact(store, selection, spec, views)
    if artifact.manifest() is not None:
        return artifact
    chosen = read_selection(selection)
    done = {i for commit in artifact.read_commits(artifact.committed()) for i in commit["image_ids"]}
    todo = sorted((s, i) for s, i in zip(chosen["shard"], chosen["image_id"], strict=True) if i not in done)
    if todo:
        _encode_views(corpus, todo, artifact, spec, views, compute)
    artifact.finish(images=len(chosen["image_id"]), views=max(views.count, 1), backbone=spec.name)
    return artifact


def _encode_views(
    corpus: Corpus, todo: list[tuple[str, str]], artifact: Artifact, spec: ClipSpec, views: Views, compute: Compute
) -> None:
    """Encode the images of these (shard, image id) pairs; each part is committed as soon as it is written."""
    configure_data(compute)
    ((_, pool),) = plan("views", [spec], compute)[0]
    shards, store = {s.id: s for s in corpus.shards}, corpus.artifact.store
    groups = [
        {
            "root": shards[shard].root,
            "listing": shards[shard].listing,
            "image_ids": ids[first : first + IMAGES_PER_TASK],
        }
        for shard, pairs in itertools.groupby(todo, key=lambda pair: pair[0])
        for ids in [[i for _, i in pairs]]
        for first in range(0, len(ids), IMAGES_PER_TASK)
    ]

    def crop(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        listing = store.read_hashed(group["listing"])
        listing = listing.filter(pc.field("image_id").isin(group["image_ids"]))
        for image_id, data in zip(listing["image_id"].to_pylist(), read_each(group["root"], listing), strict=True):
            yield {"image_id": image_id, spec.geometry.key: crop_views(data, image_id, spec, views)}

    crops = ray.data.from_items(groups, override_num_blocks=min(len(groups), 1024)).flat_map(crop)
    encoded = add_pool(crops, Encoder, (spec, "views", True, pool.device, compute.chunk_size), pool, len(groups))
    write = partial(write_views, artifact=artifact)
    receipts = encoded.map_batches(write, batch_size=IMAGES_PER_TASK, batch_format="pandas")
    progress = Progress("views", len(todo), "images")
    with in_one_sentence(compute, needs_of([(spec, pool)])):
        for receipt in receipts.iter_rows():
            image_ids = json.loads(receipt["image_ids"])
            artifact.commit(fingerprint(image_ids), parts=[receipt["part"]], image_ids=image_ids)
            progress.advance(len(image_ids))
    progress.finish()


def write_views(batch: Any, artifact: Artifact) -> dict[str, list[str]]:
    """Write the views of some images as one part, and say so in a receipt."""
    image_ids, features = list(batch["image_id"]), np.stack(list(batch["views"]))  # [n, V, D]
    n, n_views, dim = features.shape
    flat = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), n_views * dim)
    table = pa.table([pa.array(image_ids), flat], schema=schema.views(n_views, dim))
    return {"part": [artifact.write_part(f"{n:03d}", table)], "image_ids": [json.dumps(image_ids)]}


def crop_views(data: bytes | str, image_id: str, spec: ClipSpec, views: Views) -> images.Crop:
    """The views of one image's bytes as uint8 crops [V, H, W, 3].

    Raises:
        JobError: the image cannot be read any more (a reason instead of bytes), though it could when it was embedded.
    """
    try:
        if isinstance(data, str):
            raise images.Rejected(data)
        image = images.decode(data)
        if views.count == 0:
            return images.center_crop(image, spec.geometry)[None]
    except images.Rejected as error:
        raise JobError(
            f"The selected image {image_id!r} could be read when it was embedded, and cannot now ({error}); put it "
            f"back or take it out of the corpus and its manifest, and run the job again, which lists the corpus anew."
        ) from None
    return images.random_views(image, spec.geometry, image_id, views.count, views.seed, views.crop_scale, views.flip)


def read_selection(selection: Artifact) -> dict[str, list[Any]]:
    """Columns of `schema.SELECTION`."""
    columns: dict[str, list[Any]] = selection.read_table("selection.parquet").to_pydict()
    return columns


def read_views(artifact: Artifact, selection: Artifact, most: int | None = None) -> tuple[Tensor, Tensor]:
    """View features [n, V, D] float16 and pseudo-labels [n] of the selected images, ordered by image id.

    `most` is how many views are wanted, the first of all; None: all.
    """
    manifest = artifact.manifest()
    assert manifest is not None, f"{artifact.uri} is unfinished"
    chosen = read_selection(selection)
    label_of = dict(zip(chosen["image_id"], chosen["pseudo_label"], strict=True))
    ids = sorted(label_of)
    row = {image_id: i for i, image_id in enumerate(ids)}
    features: Tensor | None = None
    kept_views = manifest["views"] if most is None else min(most, manifest["views"])
    bank = Artifact(artifact.store, "views", manifest["bank"]) if "bank" in manifest else artifact
    n_views = (bank.manifest() or manifest)["views"]
    for commit in bank.read_commits(bank.committed()):
        kept = [i for i in commit["image_ids"] if i in row]
        if not kept:
            continue
        table = pa.concat_tables([bank.read_part(p) for p in sorted(commit["parts"])])
        position = {image_id: i for i, image_id in enumerate(table["image_id"].to_pylist())}
        flat = np.asarray(table["view_features"].combine_chunks().flatten())
        found = flat.reshape(len(table), n_views, -1)
        if features is None:
            features = torch.empty(len(ids), kept_views, found.shape[2], dtype=torch.float16)
        rows = [row[i] for i in kept]
        features[rows] = torch.from_numpy(found[[position[i] for i in kept], :kept_views])
    assert features is not None, f"{artifact.uri} has no parts"
    return features, torch.tensor([label_of[i] for i in ids])
