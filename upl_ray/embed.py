"""Image features with Ray Data: each image is read and decoded once, then passes one actor pool for each backbone.

    from_items          shard, first, last                      one row a span of a shard
    flat_map  (CPU)     + image_ids, reasons, pixels_HxW        one row a chunk: 64 images, always the same ones
    map       (actors)  + features_<backbone>, - pixels         one pool a backbone, largest resolution first
    map_batches (CPU)   shard, backbone, part, first, rows      features written, receipts returned

A chunk is always the same images in the same order and the same array shape, so a feature does not depend on how many
workers there are or who computes it.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from upl_ray import images, telemetry
from upl_ray.artifacts import Artifact, Store
from upl_ray.clip_model import ClipModel
from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Compute
from upl_ray.corpus import Corpus, Shard
from upl_ray.features import feature_artifact, feature_table
from upl_ray.images import Geometry
from upl_ray.passes import Pass
from upl_ray.pools import add_pool, configure_data, in_one_sentence, needs_of, plan
from upl_ray.progress import Progress
from upl_ray.reading import MISSING, read_each

log = logging.getLogger(__name__)

CHUNKS_PER_PART = 16  # chunks that one written file may hold
CHUNKS_PER_SPAN = 8  # chunks that one decoding task reads from a shard
Row = dict[str, Any]


class Encoder:
    """Actor of one pool: adds the features of one backbone to each chunk and drops pixels nobody needs any more."""

    def __init__(self, spec: ClipSpec, output: str, drop_pixels: bool, device: str, batch: int) -> None:
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # Ray's are not; they are only read
        if device == "cpu":
            torch.set_num_threads(1)  # the same sums in the same order, however many cores the machine has
        self.clip = ClipModel(spec, device=device)
        self.output, self.drop_pixels, self.batch = output, drop_pixels, batch

    def __call__(self, row: Row) -> Row:
        """[n, H, W, 3] uint8 pixels -> [n, D] half-precision features, at most `batch` images in one call."""
        key, started = self.clip.spec.geometry.key, time.monotonic()
        slices = [row[key][i : i + self.batch] for i in range(0, len(row[key]), self.batch)]
        features = np.concatenate([self.clip.encode_crops(s) for s in slices])
        telemetry.encoded(self.clip.spec.name, len(features), time.monotonic() - started)
        return {k: v for k, v in row.items() if not (self.drop_pixels and k == key)} | {self.output: features}


def embed(corpora: list[Corpus], specs: list[ClipSpec], compute: Compute, needed: dict[str, set[str]]) -> None:
    """Compute and commit the missing features of every needed (backbone, shard id) pair, in few passes.

    Raises:
        JobError: no node can serve a backbone, its actors find no room in time, or torch does not see their GPU.
    """
    store = corpora[0].artifact.store
    todo: dict[tuple[str, ...], list[Shard]] = defaultdict(list)
    done = {s.name: feature_artifact(store, s).committed() for s in specs}
    for shard in {s.id: s for c in corpora for s in c.shards}.values():
        missing = tuple(s.name for s in specs if shard.id in needed.get(s.name, ()) and shard.id not in done[s.name])
        if missing:
            todo[missing].append(shard)
    for names, work in todo.items():  # usually one group; more after a backbone was added or a run was killed
        for pools in plan("features", [s for s in specs if s.name in names], compute):
            _embed_pass(corpora, pools, work, compute)


def _embed_pass(corpora: list[Corpus], pools: Pass, work: list[Shard], compute: Compute) -> None:
    store = corpora[0].artifact.store
    configure_data(compute)
    specs = [spec for spec, _ in pools]
    geometries = {s.geometry.key: s.geometry for s in specs}
    last_user = {s.geometry.key: s.name for s in specs}
    most = max(pool.max_actors for _, pool in pools)
    spans = cut_spans(work, compute.chunk_size, most)
    gone = {s.id: s.removed for s in work if s.removed}
    decoder = ChunkDecoder(store, list(geometries.values()), compute.chunk_size, gone)
    dataset = ray.data.from_items(spans, override_num_blocks=min(len(spans), 4096)).flat_map(decoder)
    for spec, pool in pools:
        drop_pixels = last_user[spec.geometry.key] == spec.name
        arguments = (spec, f"features_{spec.name}", drop_pixels, pool.device, compute.chunk_size)
        dataset = add_pool(dataset, Encoder, arguments, pool, len(spans))
    artifacts = {s.name: feature_artifact(store, s) for s in specs}
    write = partial(write_features, artifacts=artifacts)
    receipts = dataset.map_batches(write, batch_size=CHUNKS_PER_PART, batch_format="pandas")
    with in_one_sentence(compute, needs_of(pools)):
        _commit(receipts.iter_rows(), artifacts, corpora, work)


def cut_spans(shards: list[Shard], chunk_size: int, actors: int) -> list[Row]:
    """What one decoding task each reads: some whole chunks of a shard, few where all actors are to get some."""
    chunks = sum(-(-s.rows // chunk_size) for s in shards)
    span = chunk_size * min(CHUNKS_PER_SPAN, max(1, chunks // (4 * actors)))
    return [
        {"shard": s.id, "root": s.root, "listing": s.listing, "first": first, "last": min(first + span, s.rows)}
        for s in shards
        for first in range(0, s.rows, span)
    ]


class ChunkDecoder:
    """Reads and decodes spans of shards into chunks; a plain callable that runs in CPU tasks."""

    def __init__(
        self, store: Store, geometries: list[Geometry], chunk_size: int, gone: dict[str, frozenset[str]]
    ) -> None:
        self.store, self.geometries, self.chunk_size, self.gone = store, geometries, chunk_size, gone

    def __call__(self, span: Row) -> Iterator[Row]:
        """One row for each chunk; a bad image keeps its place with black pixels and a reason."""
        listing = self.store.read_hashed(span["listing"])
        for first in range(span["first"], span["last"], self.chunk_size):
            rows = listing.slice(first, min(self.chunk_size, span["last"] - first))
            gone = self.gone.get(span["shard"], frozenset())
            chunk = decode_chunk(span["root"], rows, self.geometries, gone)
            found = zip(chunk["image_ids"], chunk["reasons"], strict=True)
            telemetry.rejected([reason for image_id, reason in found if reason and image_id not in gone])
            yield {"shard": span["shard"], "first": first, **chunk}


def decode_chunk(root: str, listing: pa.Table, geometries: list[Geometry], gone: frozenset[str] = frozenset()) -> Row:
    """Read and decode images: their ids, a reason for each that is refused (else ""), and [n, H, W, 3] pixels.

    Images that are `gone` since they were listed keep their place in the chunk and are not looked for.
    """
    image_ids = listing["image_id"].to_pylist()
    reasons = [MISSING if i in gone else "" for i in image_ids]
    pixels = {g.key: np.zeros((len(image_ids), g.height, g.width, 3), np.uint8) for g in geometries}
    there = [i for i, reason in enumerate(reasons) if not reason]
    limits = max(geometries, key=lambda g: g.max_pixels)
    found = read_each(root, listing.take(pa.array(there, pa.int64())), limits.max_bytes)
    for i, data in zip(there, found, strict=True):
        try:
            if isinstance(data, str):
                raise images.Rejected(data)
            image = images.decode(data, limits.max_pixels)
            crops = {g.key: images.center_crop(image, g) for g in geometries}
        except images.Rejected as error:
            reasons[i] = str(error)
            continue
        for key, crop in crops.items():
            pixels[key][i] = crop
    return {"image_ids": image_ids, "reasons": reasons, **pixels}


def write_features(batch: Any, artifacts: dict[str, Artifact]) -> dict[str, list[Any]]:
    """Write the features of some chunks, one part for each (shard, backbone), and say so in receipts."""
    receipts: list[Row] = []
    for shard, chunks in batch.groupby("shard"):
        ids = [list(c) for c in chunks["image_ids"]]
        reasons = {i: r for c, rs in zip(ids, chunks["reasons"], strict=True) for i, r in zip(c, rs, strict=True) if r}
        for name, artifact in artifacts.items():
            table = feature_table(
                list(chain.from_iterable(ids)), np.concatenate(list(chunks[f"features_{name}"])), set(reasons)
            )
            receipts.append(
                {
                    "shard": shard,
                    "backbone": name,
                    "part": artifact.write_part(shard, table),
                    "chunks": json.dumps([[f, len(c)] for f, c in zip(chunks["first"].tolist(), ids, strict=True)]),
                    "rejected": json.dumps(reasons),
                }
            )
    return {k: [r[k] for r in receipts] for k in receipts[0]}


def _commit(
    receipts: Iterable[Row], artifacts: dict[str, Artifact], corpora: list[Corpus], shards: list[Shard]
) -> None:
    """Commit each (shard, backbone) as soon as its receipts cover it; what was written twice counts once."""
    by_id = {s.id: s for s in shards}
    rows = {s.id: s.rows for s in shards}
    covered: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    commits: dict[tuple[str, str], dict[str, Any]] = defaultdict(lambda: {"parts": [], "rejected": {}})
    progress = Progress("features", sum(rows.values()), "images")
    for receipt in receipts:
        key = (receipt["shard"], receipt["backbone"])
        chunks = dict(json.loads(receipt["chunks"]))
        if chunks.keys() <= covered[key].keys():
            continue
        covered[key].update(chunks)
        commits[key]["parts"].append(receipt["part"])
        commits[key]["rejected"].update(json.loads(receipt["rejected"]))
        if receipt["backbone"] == next(iter(artifacts)):
            progress.advance(sum(chunks.values()))
        if sum(covered[key].values()) == rows[key[0]]:
            commit = commits.pop(key)
            _note_missing(corpora, by_id[key[0]], commit["rejected"])
            artifacts[key[1]].commit(key[0], rows=rows[key[0]], **commit)
    progress.finish()
    if commits:
        raise RuntimeError(f"Features of {len(commits)} (shard, backbone) pairs are incomplete; run the job again.")


def _note_missing(corpora: list[Corpus], shard: Shard, rejected: dict[str, str]) -> None:
    missing = {i for i, reason in rejected.items() if reason == MISSING and i not in shard.removed}
    for corpus in corpora:
        if missing and any(s.id == shard.id for s in corpus.shards):
            corpus.note_missing(shard, missing)
