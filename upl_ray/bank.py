"""One view bank for many selections: each image is encoded once, and every selection's views refer to it.

The views of an image depend on its id and the seed alone, and the first v of many views are those that v views would
be (`images.random_views`). So the views of a selection are rows and columns of those of a larger one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa

from upl_ray import schema
from upl_ray.artifacts import Artifact, fingerprint
from upl_ray.config import Views
from upl_ray.inputs import Inputs
from upl_ray.ray_cluster import RayCluster
from upl_ray.samples import write_selection
from upl_ray.views import make_views, view_artifact

VERSION = 1  # raise when the same selections make another union


def share_views(inputs: Inputs, wanted: Iterable[tuple[Artifact, Views]], cluster: RayCluster) -> None:
    """Make the views of all these selections; what `views.view_artifact` names is finished afterwards."""
    todo: dict[str, list[tuple[Artifact, Views]]] = defaultdict(list)
    for selection, views in wanted:
        if view_artifact(inputs.store, selection, inputs.target, views).manifest() is None:
            kind = views.model_dump(exclude={"count"}) | {"clean": views.count == 0}
            todo[fingerprint(kind)].append((selection, views))
    for group in todo.values():
        cluster.start("views")
        _make_group(inputs, group)


def _make_group(inputs: Inputs, group: list[tuple[Artifact, Views]]) -> None:
    """Views of selections that differ in nothing but images and the number of views."""
    widest = max((views for _, views in group), key=lambda v: v.count)
    union = _union(inputs, [selection for selection, _ in group])
    bank = make_views(inputs.corpus, union, inputs.target, widest, inputs.config.compute)
    for selection, views in group:
        artifact = view_artifact(inputs.store, selection, inputs.target, views)
        if artifact.manifest() is None:
            images = (selection.manifest() or {})["images"]
            count = max(views.count, 1)
            artifact.finish(images=images, views=count, backbone=inputs.target.name, bank=bank.fingerprint)


def _union(inputs: Inputs, selections: list[Artifact]) -> Artifact:
    """A selection of all images of some selections; its labels mean nothing."""
    folders = sorted({s.folder: s for s in selections})
    if len(folders) == 1:
        return selections[0]
    artifact = Artifact(inputs.store, "selection", fingerprint({"version": VERSION, "union": folders}))
    if artifact.manifest() is None:
        columns = ["image_id", "shard"]
        tables = [s.read_table("selection.parquet", columns) for s in selections]
        rows = pa.concat_tables(tables).group_by(columns).aggregate([]).sort_by("image_id")
        filled = {"pseudo_label": [0] * len(rows), "confidence": [0.0] * len(rows), "rank": [0] * len(rows)}
        table = pa.table({**{c: rows[c] for c in columns}, **filled})
        write_selection(artifact, table.select(schema.SELECTION.names).cast(schema.SELECTION), len(inputs.classnames))
    return artifact
