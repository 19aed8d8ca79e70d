"""Work that is done shard by shard with Ray Data.

    from_items        index                       one row a shard
    map (CPU tasks)   small results               reads from storage; writes one part and commits the shard, or tallies

Everything that a task needs is in storage; only counts and sums come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch
from torch import Tensor

from upl_ray.cluster.actors import configure_data
from upl_ray.config.settings import Compute
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.progress import Progress
from upl_ray.storage.step import Step
from upl_ray.upl.ensemble import Ensemble, Mixture

BLOCKS = 4096  # Ray blocks of one dataset
ROWS_AT_ONCE = 512  # rows whose logits are held together: 512 x 16 members x 1,000 classes are 32 MB
Facts = dict[str, Any]  # what a commit holds beside its parts


def unfinished_shards(corpora: list[Corpus], step: Step) -> list[Shard]:
    """The shards of these corpora that the step has no commit for, each once."""
    done = step.committed()
    return list({s.state: s for c in corpora for s in c.shards if s.state not in done}.values())


def shards_without_rows(todo: list[Shard], step: Step) -> list[Shard]:
    """Those shards of which not even the rows before some of their images were removed are in storage."""
    done = step.committed() if any(s.removed for s in todo) else set()  # one listing less, on most nights
    return [s for s in todo if s.id not in done]


def commit_each_shard(
    label: str,
    todo: list[Shard],
    step: Step,
    make_rows: Callable[[Shard], pa.Table],
    compute: Compute,
    facts: Callable[[Shard, pa.Table], Facts] = lambda shard, table: {},
) -> None:
    """Make, write and commit the rows of each shard.

    Args:
        label: of the log lines.
        todo: the shards without a commit.
        step: where rows and commits go.
        make_rows: gives a shard's rows.
        compute: settings of Ray Data.
        facts: gives what the commit holds beside its parts.
    """
    if not todo:
        return
    new = {s.id for s in shards_without_rows(todo, step)}

    def process(index: int) -> dict[str, Any]:
        shard = todo[index]
        table = make_rows(shard) if shard.id in new else _remaining_rows(step.read_shard(shard.id), shard)
        part = step.write_part(shard.state, table)
        step.commit(shard.state, parts=[part], rows=table.num_rows, **facts(shard, table))
        return {}

    for _ in map_shards(label, todo, process, compute):
        pass


def map_shards(
    label: str, shards: list[Shard], process: Callable[[int], dict[str, Any]], compute: Compute, in_order: bool = False
) -> Iterator[dict[str, Any]]:
    """Results of `process` for the index of each shard, in tasks of one thread; the images are counted in the log.

    Results come as they are made, or with `in_order` in the order of the shards: sums of floats depend on it.
    """
    configure_data(compute, in_order)

    def process_shard(row: dict[str, Any]) -> dict[str, Any]:
        torch.set_num_threads(1)
        return {"rows": shards[row["index"]].rows, **process(row["index"])}

    progress = Progress(label, sum(s.rows for s in shards), "images")
    indices = [{"index": i} for i in range(len(shards))]
    for row in (
        ray.data.from_items(indices, override_num_blocks=min(len(shards), BLOCKS)).map(process_shard).iter_rows()
    ):
        progress.advance(row.pop("rows"))
        yield row
    progress.finish()


def map_items(label: str, items: list[str], function: Callable[[str], str], compute: Compute) -> Iterator[str]:
    """Results of a function of text for each item, in tasks, as they are made; the items are counted in the log."""
    configure_data(compute)
    progress = Progress(label, len(items), label)

    def process_item(row: dict[str, str]) -> dict[str, str]:
        return {"result": function(row["item"])}

    rows = [{"item": item} for item in items]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(items), BLOCKS))
    for row in dataset.map(process_item).iter_rows():
        progress.advance(1)
        yield row["result"]
    progress.finish()


def _remaining_rows(table: pa.Table, shard: Shard) -> pa.Table:
    """The rows of a whole shard without its removed images; no feature is read for them."""
    return table.filter(pa.array([i not in shard.removed for i in table["image_id"].to_pylist()], pa.bool_()))


def apply_in_slices(
    features: npt.NDArray[np.float16], classify: Callable[[Tensor], Tensor], width: int
) -> npt.NDArray[np.float32]:
    """Apply `classify` ([n, D] -> [n, width]) to all rows, at most `ROWS_AT_ONCE` together."""
    out = np.empty((len(features), width), np.float32)
    for rows in _slices(len(features)):
        out[rows] = classify(torch.from_numpy(features[rows])).numpy()
    return out


def classify_in_slices(
    features: npt.NDArray[np.float16], ensemble: Ensemble, mixture: Mixture = "corpus"
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Probabilities [N, C] and each member's label [N, S] of features [N, D], at most `ROWS_AT_ONCE` rows together."""
    members, classes, _ = ensemble.text_features.shape
    probabilities = np.empty((len(features), classes), np.float32)
    member_labels = np.empty((len(features), members), np.int32)
    for rows in _slices(len(features)):
        both = ensemble.classify(torch.from_numpy(features[rows]), mixture)
        probabilities[rows], member_labels[rows] = (x.numpy() for x in both)
    return probabilities, member_labels


def known_in_slices(features: npt.NDArray[np.float16], ensemble: Ensemble) -> pa.Array:
    """`Ensemble.known` of features [N, D] as a column; nulls where no words compete."""
    parts = [ensemble.known(torch.from_numpy(features[rows])) for rows in _slices(len(features))]
    shares = [x for part in parts if part is not None for x in part.tolist()]
    return pa.array(shares or [None] * len(features), pa.float32())


def _slices(n: int) -> Iterator[slice]:
    return (slice(first, first + ROWS_AT_ONCE) for first in range(0, n, ROWS_AT_ONCE))
