"""One view bank for many selections: each image is encoded once, and every selection's views refer to it.

The views of an image depend on its id and the seed alone, and the first v of many views are those that v views would
be (`images.random_views`). So the views of a selection are rows and columns of those of a larger one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa

from upl_ray.cluster.connect import RayCluster
from upl_ray.config.settings import Views
from upl_ray.pipeline.inputs import Inputs
from upl_ray.pipeline.selection import read_selection, write_selection
from upl_ray.pipeline.views import make_views, view_step
from upl_ray.storage import schema
from upl_ray.storage.step import Step, fingerprint


def share_views(inputs: Inputs, wanted: Iterable[tuple[Step, Views]], cluster: RayCluster) -> None:
    """Make the views of all these selections: each `view_step` is finished afterwards."""
    todo: dict[str, list[tuple[Step, Views]]] = defaultdict(list)
    for selection, views in wanted:
        if not _finished(view_step(selection, inputs.target, views)):
            kind = views.model_dump(exclude={"count"}) | {"clean": views.count == 0}
            todo[fingerprint(kind)].append((selection, views))
    for group in todo.values():
        cluster.start(view_step(group[0][0], inputs.target, group[0][1]).folder)
        _make_group(inputs, group)


def _make_group(inputs: Inputs, group: list[tuple[Step, Views]]) -> None:
    """Views of selections that differ in nothing but images and the number of views."""
    widest = max((views for _, views in group), key=lambda v: v.count)
    union = _union(inputs, [selection for selection, _ in group])
    bank = view_step(union, inputs.target, widest)
    if not _finished(bank):
        make_views(bank, inputs.corpus, union, inputs.target, widest, inputs.config.compute)
    for selection, views in group:
        step = view_step(selection, inputs.target, views)
        if not _finished(step):
            images = selection.manifest()["images"]
            count = max(views.count, 1)
            step.finish(images=images, views=count, backbone=inputs.target.name, bank=bank.fingerprint)


def _finished(step: Step) -> bool:
    """True if the views of a step are there, those of the bank that it refers to included."""
    manifest = step.find_manifest()
    return manifest is not None and ("bank" not in manifest or Step(step.store, "views", manifest["bank"]).finished)


def _union(inputs: Inputs, selections: list[Step]) -> Step:
    """A selection of all images of some selections; its labels are placeholders."""
    folders = sorted({s.folder: s for s in selections})
    if len(folders) == 1:
        return selections[0]
    step = Step.of(inputs.store, "selection", version=4, inputs={"union": folders})
    if not step.finished:
        columns = ["image_id", "shard"]
        tables = [read_selection(s, columns) for s in selections]
        rows = pa.concat_tables(tables).group_by(columns).aggregate([]).sort_by("image_id")
        filled = {"pseudo_label": [0] * len(rows), "confidence": [0.0] * len(rows), "rank": [0] * len(rows)}
        table = pa.table({**{c: rows[c] for c in columns}, **filled})
        write_selection(step, table.select(schema.SELECTION.names).cast(schema.SELECTION), len(inputs.classnames))
    return step
