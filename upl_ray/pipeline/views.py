"""The view step: augmented views of the selected images, encoded once for all members and reruns (the view bank).

The image encoder is frozen, so a view needs encoding once however many members and epochs use it.

    from_items          root, listing, image_ids            one row for some selected images of a shard
    flat_map (CPU)      image_id, pixels_HxW [V, H, W, 3]   one row an image
    map (actors)        + views [V, D], - pixels            the target's pool
    map_batches (CPU)   part, image_ids                     views written, receipts returned
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from upl_ray.cluster.actors import add_pool, configure_data, in_one_sentence, needs_of, place_actors
from upl_ray.config.settings import Compute, Views
from upl_ray.corpus.read import read_each
from upl_ray.corpus.shards import Corpus, read_listing
from upl_ray.errors import Damaged, JobError
from upl_ray.pipeline.features import Encoder
from upl_ray.pipeline.selection import read_selection
from upl_ray.progress import Progress
from upl_ray.storage import schema
from upl_ray.storage.step import MANIFEST, Step, fingerprint
from upl_ray.storage.store import damaged, read_ahead
from upl_ray.upl import images, rejection
from upl_ray.upl.clip_spec import ClipSpec

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

IMAGES_PER_TASK = 16  # 16 images x 50 views x 224 x 224 pixels are 120 MB


def view_step(selection: Step, spec: ClipSpec, views: Views) -> Step:
    """The views of a selection; the training recipe does not touch them."""
    inputs = {"clip": spec.identity(), "views": views.model_dump()}
    return Step.of(selection.store, "views", version=2, inputs=inputs, needs=[selection])


def make_views(step: Step, corpus: Corpus, selection: Step, spec: ClipSpec, views: Views, compute: Compute) -> None:
    """Encode `views.count` random crops of each selected image, or its centre crop if that is 0."""
    chosen = read_selection(selection, ["shard", "image_id"]).to_pydict()
    done = {i for found in read_ahead(sorted(step.committed()), lambda c: _committed_images(step, c)) for i in found}
    todo = sorted((s, i) for s, i in zip(chosen["shard"], chosen["image_id"], strict=True) if i not in done)
    if todo:
        _encode_views(corpus, todo, step, spec, views, compute)
    step.finish(images=len(chosen["image_id"]), views=max(views.count, 1), backbone=spec.name)


def _committed_images(step: Step, commit: str) -> list[str]:
    """The images of a commit; none where it or its part is damaged, so that they are encoded again."""
    try:
        image_ids: list[str] = step.read_commit(commit)["image_ids"]
        step.read_shard(commit, ["image_id"])
    except Damaged:
        return []
    return image_ids


def _encode_views(
    corpus: Corpus, todo: list[tuple[str, str]], step: Step, spec: ClipSpec, views: Views, compute: Compute
) -> None:
    """Encode the images of these (shard, image id) pairs; each part is committed as soon as it is written."""
    configure_data(compute)
    ((_, pool),) = place_actors("views", [spec], compute)[0]
    shards, store = {s.id: s for s in corpus.shards}, corpus.step.store
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
        listing = read_listing(store, group["listing"])
        listing = listing.filter(pc.field("image_id").isin(group["image_ids"]))
        for image_id, data in zip(listing["image_id"].to_pylist(), read_each(group["root"], listing), strict=True):
            yield {"image_id": image_id, spec.geometry.key: crop_views(data, image_id, spec, views)}

    crops = ray.data.from_items(groups, override_num_blocks=min(len(groups), 1024)).flat_map(crop)
    batch = min(compute.chunk_size, max(views.count, 1))
    encoded = add_pool(crops, Encoder, (spec, "views", True, pool.device, batch), pool, len(groups))
    write = partial(write_views, step=step)
    receipts = encoded.map_batches(write, batch_size=IMAGES_PER_TASK, batch_format="pandas")
    progress = Progress("views", len(todo), "images")
    with in_one_sentence(compute, needs_of([(spec, pool)])):
        for receipt in receipts.iter_rows():
            image_ids = json.loads(receipt["image_ids"])
            step.commit(fingerprint(image_ids), parts=[receipt["part"]], image_ids=image_ids)
            progress.advance(len(image_ids))
    progress.finish()


def write_views(batch: Any, step: Step) -> dict[str, list[str]]:
    """Write the views of some images as one part, and say so in a receipt."""
    image_ids, features = list(batch["image_id"]), np.stack(list(batch["views"]))  # [n, V, D]
    n, n_views, dim = features.shape
    flat = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), n_views * dim)
    table = pa.table([pa.array(image_ids), flat], schema=schema.views(n_views, dim))
    return {"part": [step.write_part(f"{n:03d}", table)], "image_ids": [json.dumps(image_ids)]}


def crop_views(data: bytes | str, image_id: str, spec: ClipSpec, views: Views) -> images.Crop:
    """The views of one image's bytes as uint8 crops [V, H, W, 3].

    Raises:
        JobError: the image cannot be read any more (a reason instead of bytes), though it could when it was embedded.
    """
    try:
        if isinstance(data, str):
            raise rejection.Rejected(data)
        image = images.decode(data, draft=spec.geometry.draft)
        if views.count == 0:
            return images.center_crop(image, spec.geometry)[None]
    except rejection.Rejected as error:
        raise JobError(
            f"The selected image {image_id!r} could be read when it was embedded, and cannot now ({error}); put it "
            f"back or take it out of the corpus and its manifest, and run the job again, which lists the corpus again."
        ) from None
    return images.random_views(image, spec.geometry, image_id, views.count, views.seed, views.crop_scale, views.flip)


def views_bytes(images: int, views: int, dim: int) -> int:
    """Size of the features of `views` views of each image, as they are stored and held: in float16 [bytes]."""
    return 2 * images * views * dim


def read_views(step: Step, selection: Step, most: int | None = None) -> tuple[Tensor, Tensor]:
    """View features [n, V, D] float16 and pseudo-labels of the selected images, ordered by image id.

    Labels are classes [n]; or probabilities [n, C] float32 where the views were stored with such targets.

    `most` is how many views are wanted, the first of all; None: all.

    Raises:
        Damaged: commits and parts do not hold all of the images; names the manifest to delete.
    """
    import torch  # tasks that crop and write import this module, too, and start sooner without

    manifest = step.manifest()
    chosen = read_selection(selection, ["image_id", "pseudo_label"])
    label_of = dict(zip(chosen["image_id"].to_pylist(), chosen["pseudo_label"].to_pylist(), strict=True))
    ids = sorted(label_of)
    row = {image_id: i for i, image_id in enumerate(ids)}
    features, targets, missing = torch.empty(0), torch.empty(0), set(ids)
    kept_views = manifest["views"] if most is None else min(most, manifest["views"])
    bank = Step(step.store, "views", manifest["bank"]) if "bank" in manifest else step  # see pipeline/view_bank.py
    n_views = bank.manifest()["views"]

    def read(commit: str) -> tuple[list[str], pa.Table | None]:
        try:
            kept = [i for i in bank.read_commit(commit)["image_ids"] if i in row]
            return kept, bank.read_shard(commit) if kept else None
        except Damaged as error:  # it matters only if no other commit holds its images
            log.warning("%-12s %s", "views", error)
            return [], None

    for kept, table in read_ahead(sorted(bank.committed()), read):
        if table is None:
            continue
        position = {image_id: i for i, image_id in enumerate(table["image_id"].to_pylist())}
        flat = np.asarray(table["view_features"].combine_chunks().flatten())
        found = flat.reshape(len(table), n_views, -1)
        if not len(features):
            features = torch.empty(len(ids), kept_views, found.shape[2], dtype=torch.float16)
        rows, positions = [row[i] for i in kept], [position[i] for i in kept]
        features[rows] = torch.from_numpy(found[positions, :kept_views])
        if "targets" in table.column_names:
            soft = np.asarray(table["targets"].combine_chunks().flatten()).reshape(len(table), -1)
            if not len(targets):
                targets = torch.empty(len(ids), soft.shape[1])
            targets[rows] = torch.from_numpy(soft[positions])
        missing -= set(kept)
    if missing:
        raise damaged(bank.uri, bank.store.join(bank.path(MANIFEST)))
    return features, targets if len(targets) else torch.tensor([label_of[i] for i in ids])
