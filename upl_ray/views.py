"""The view bank with Ray Data: augmented views of the selected images, encoded once for all members and reruns.

The image encoder is frozen, so a view needs encoding once however many members and epochs use it.

    from_items          image_id                    one row a selected image
    map (CPU)           + pixels_HxW [V, H, W, 3]
    map (actors)        + views [V, D], - pixels    the target's pool
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from upl_ray import images, schema
from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Compute, Views
from upl_ray.corpus import Corpus, read_images
from upl_ray.embed import Encoder
from upl_ray.pools import configure_data, plan_pools
from upl_ray.progress import Progress

VERSION = 1  # raise when the same images give other views


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
    configure_data(compute)
    ids = store.read_table(selection.name("selection.parquet"))["image_id"].to_pylist()
    pool = plan_pools(1, ray.cluster_resources(), compute)

    def crop(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, spec.geometry.key: crop_views(corpus.root, row["image_id"], spec, views)}

    dataset = (
        ray.data.from_items([{"image_id": i} for i in ids], override_num_blocks=min(len(ids), 256))
        .map(crop)
        .map(
            Encoder,  # type: ignore[arg-type]  # Ray's annotation does not know callable classes
            fn_constructor_args=(spec, "views", True, pool.device, compute.chunk_size),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool.max_actors),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
        )
    )
    progress = Progress("views", len(ids), "images")
    rows = []
    for row in dataset.iter_rows():
        rows.append((row["image_id"], np.asarray(row["views"])))
        progress.advance(1)
    progress.finish()
    rows.sort(key=lambda r: r[0])
    n_views, dim = rows[0][1].shape
    flat = pa.array(np.stack([v for _, v in rows]).reshape(-1))
    table = pa.table(
        [pa.array([i for i, _ in rows]), pa.FixedSizeListArray.from_arrays(flat, n_views * dim)],
        schema=schema.views(n_views, dim),
    )
    store.write_table(artifact.name("views.parquet"), table)
    artifact.finish(images=len(rows), views=n_views, dim=dim, backbone=spec.name)
    return artifact


def crop_views(root: str, image_id: str, spec: ClipSpec, views: Views) -> images.Crop:
    """The views of one image as uint8 crops [V, H, W, 3].

    Raises:
        ValueError: the image cannot be read any more, though it could when the corpus was embedded.
    """
    data = read_images(root, [image_id])[0]
    if isinstance(data, str):
        raise ValueError(f"The selected image {image_id} of {root}: {data}; run the job again to list the corpus anew.")
    image = images.decode(data)
    if views.count == 0:
        return images.center_crop(image, spec.geometry)[None]
    return images.random_views(image, spec.geometry, image_id, views.count, views.seed, views.crop_scale, views.flip)


def read_views(artifact: Artifact, selection: Artifact) -> tuple[Tensor, Tensor]:
    """View features [n, V, D] and pseudo-labels [n] of the selected images, ordered by image id."""
    manifest = artifact.manifest()
    assert manifest is not None, f"{artifact.uri} is unfinished"
    table = artifact.store.read_table(artifact.name("views.parquet"))
    chosen = artifact.store.read_table(selection.name("selection.parquet"))
    label_of = dict(zip(chosen["image_id"].to_pylist(), chosen["pseudo_label"].to_pylist(), strict=True))
    flat = np.asarray(table["view_features"].combine_chunks().flatten())
    features = torch.from_numpy(flat.reshape(table.num_rows, manifest["views"], manifest["dim"]).copy())
    return features, torch.tensor([label_of[i] for i in table["image_id"].to_pylist()])
