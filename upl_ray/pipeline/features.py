"""The feature step: image features of each backbone, made with Ray Data and committed shard by shard.

Each image is read and decoded once, then passes one actor pool for each backbone:

    from_items          shard, first, last                      one row a span of a shard
    flat_map  (CPU)     + image_ids, reasons, pixels_HxW        one row a chunk: 64 images, always the same ones
    map       (actors)  + features_<backbone>, - pixels         one pool a backbone, largest resolution first
    map_batches (CPU)   shard, backbone, part, first, rows      features written, receipts returned

A chunk is always the same images in the same order and the same array shape, so a feature does not depend on how many
workers there are or which of them computes it. One folder a backbone serves all corpora, since shards are
content-addressed; the backbone's name is no part of it.

Shapes: n images, D feature width.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from upl_ray.cluster import metrics
from upl_ray.cluster.actors import add_pool, configure_data, in_one_sentence, needs_of, place_actors
from upl_ray.cluster.placement import Pass
from upl_ray.config.settings import Compute
from upl_ray.corpus.read import find_forbidden, read_each, try_images
from upl_ray.corpus.shards import REJECTED, Corpus, Shard, keep_snapshot, read_listing
from upl_ray.errors import ConfigError, JobError, quoted
from upl_ray.progress import Progress
from upl_ray.storage import schema
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store, is_remote, read_ahead
from upl_ray.upl import images, rejection
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.images import Geometry
from upl_ray.upl.rejection import MISSING

log = logging.getLogger(__name__)

TRIED = 32  # images of a corpus that are read before work, if all but the last cannot be
CHUNKS_PER_PART = 16  # chunks that one written file may hold
CHUNKS_PER_SPAN = 8  # chunks that one decoding task reads from a shard
SPANS_PER_DATASET = 4096  # one Ray block each: what is lost with a node is one span, and the driver holds few receipts
Row = dict[str, Any]


def feature_step(store: Store, spec: ClipSpec) -> Step:
    """The features of a backbone, of all corpora."""
    return Step.of(store, "features", version=4, inputs={"clip": spec.identity()})


def missing_shards(step: Step, shards: Iterable[Shard]) -> set[str]:
    """Ids of those shards whose features are not there: never computed, or dropped."""
    return {s.id for s in shards} - step.committed()


def forgotten_shards(step: Step, shards: Iterable[Shard]) -> set[str]:
    """Ids of those shards of which not even the rejected images are known: never computed, or a commit was deleted."""
    dropped = step.store.names(step.path("dropped"))
    return missing_shards(step, shards) - {n.removesuffix(".json") for n in dropped}


def check_some_images(
    corpora: Iterable[Corpus], needed: Collection[str], limit: float, geometry: images.Geometry
) -> None:
    """Refuse a corpus of which none of some images can be read, before nodes are waited for and work starts.

    Args:
        corpora: the images.
        needed: ids of the shards that are to be read; images from all over them are tried until one can be read.
        limit: share of unreadable images that stops the job.
        geometry: of any backbone: what is rejected does not depend on it.

    Raises:
        ConfigError: all of them are missing, damaged, or no images; and without these shards the job would stop. Or
            a local file may not be read.
        JobError: an image may not be read, or the storage does not answer.
    """
    for corpus in corpora:
        shards = [s for s in corpus.shards if s.id in needed]
        _check_permissions(corpus, shards)
        if sum(s.rows - len(s.removed) for s in shards) <= limit * corpus.images:
            continue
        reasons: dict[str, str] = {}
        for image_id, reason in _try_some(corpus, shards, geometry):
            if not reason:
                break
            if reason != rejection.NO_BYTES:  # a failed download says nothing about the others
                reasons[image_id] = reason
        else:
            if not reasons:
                continue
            image_id, reason = next(iter(reasons.items()))
            raise ConfigError(
                f"No image of {corpus.name} can be read, of {len(reasons)} that were tried; the first is "
                f"{quoted(image_id)}: {reason}. Correct the addresses, or repair the files."
            )


def _check_permissions(corpus: Corpus, shards: Sequence[Shard]) -> None:
    local = [s for s in shards if not is_remote(s.root)]
    listings = read_ahead(local, lambda shard: corpus.listing(shard, ["image_id", "file"]))
    for shard, listing in zip(local, listings, strict=True):
        present = [i not in shard.removed for i in listing["image_id"].to_pylist()]
        if forbidden := find_forbidden(shard.root, listing.filter(pa.array(present, pa.bool_()))):
            raise ConfigError(
                f"There is no permission to read files of {corpus.name}, such as {quoted(forbidden[0])}; grant it, or "
                f"remove them."
            )


def _try_some(corpus: Corpus, shards: Sequence[Shard], geometry: images.Geometry) -> Iterator[tuple[str, str]]:
    """(image id, the reason why it cannot be read or "") of up to `TRIED` images from all over some shards."""
    chosen = [shards[i] for i in _spread(len(shards), TRIED)]
    for shard in chosen:
        listing = corpus.listing(shard)
        there = [i not in shard.removed for i in listing["image_id"].to_pylist()]
        listing = listing.filter(pa.array(there, pa.bool_()))
        most = TRIED // len(chosen)
        # A Parquet file is read from its beginning to the row, so its first rows are tried, at once.
        single = (listing.slice(i, 1) for i in _spread(len(listing), most))
        for rows in [listing.slice(0, most)] if shard.in_row_groups else single:
            for image_id, data in zip(rows["image_id"].to_pylist(), try_images(shard.root, rows), strict=True):
                yield image_id, _why_rejected(data, geometry)


def _why_rejected(data: bytes | str, geometry: images.Geometry) -> str:
    """The reason why an image is rejected when it is decoded and cropped; empty if it is not."""
    try:
        if isinstance(data, str):
            raise rejection.Rejected(data)
        images.center_crop(images.decode(data, geometry.max_pixels, geometry.draft), geometry)
    except rejection.Rejected as error:
        return str(error)
    return ""


def _spread(length: int, most: int) -> list[int]:
    """At most `most` indices of a sequence, evenly spaced."""
    count = min(length, most)
    return [i * length // count for i in range(count)]


# Making features.


class Encoder:
    """Actor of one pool: adds the features of one backbone to each chunk and drops pixels nobody needs any more."""

    def __init__(self, spec: ClipSpec, output: str, drop_pixels: bool, device: str, batch: int) -> None:
        # Tasks that decode and write import this module, too: without torch and open_clip they start 5 s of CPU sooner.
        import torch

        from upl_ray.upl.clip_model import ClipModel

        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # Ray's are not; they are only read
        if device == "cpu":
            torch.set_num_threads(1)  # the same sums in the same order, however many cores the machine has
        else:
            # In this process alone: texts and prompts, which are encoded in others, stay in full fp32. torch allows it
            # for convolutions anyway. The newer `fp32_precision` raises in torch.compile's getters (torch 2.14).
            torch.backends.cuda.matmul.allow_tf32 = True
        self.clip = ClipModel(spec, device=device)
        if spec.backbone.compile:
            self.clip.compile_images(batch)
        self.output, self.drop_pixels, self.batch = output, drop_pixels, batch
        self.turn, self.finished = threading.Lock(), 0.0

    def __call__(self, row: Row) -> Row:
        """[n, H, W, 3] uint8 pixels -> [n, D] half-precision features, at most `batch` images in one model call.

        On a GPU two rows are here at a time (`add_pool`): one is sent while the other is computed. They begin in turn,
        so that the activations of one are in memory.
        """
        key, started = self.clip.spec.geometry.key, time.monotonic()
        with self.turn:
            begun = [self.clip.begin_crops(row[key][i : i + self.batch]) for i in range(0, len(row[key]), self.batch)]
        features = np.concatenate([self.clip.finish_crops(b) for b in begun])
        with self.turn:
            started, self.finished = max(started, self.finished), time.monotonic()
            metrics.encoded(self.clip.spec.name, len(features), self.finished - started)
        return {k: v for k, v in row.items() if not (self.drop_pixels and k == key)} | {self.output: features}


def make_features(
    corpora: list[Corpus], specs: list[ClipSpec], steps: dict[str, Step], compute: Compute, needed: dict[str, set[str]]
) -> None:
    """Compute and commit the missing features of every needed (backbone, shard id) pair, in few passes.

    Args:
        corpora: where the images are.
        specs: the backbones.
        steps: the feature step of each backbone, by its name.
        compute: how the work is spread.
        needed: backbone name -> ids of the shards that must be there.

    Raises:
        JobError: no node can serve a backbone, its actors find no room in time, or torch does not see their GPU.
    """
    todo: dict[tuple[str, ...], list[Shard]] = defaultdict(list)
    done = {s.name: steps[s.name].committed() for s in specs}
    for shard in {s.id: s for c in corpora for s in c.shards}.values():
        missing = tuple(s.name for s in specs if shard.id in needed.get(s.name, ()) and shard.id not in done[s.name])
        if missing:
            todo[missing].append(shard)
    for names, work in todo.items():  # usually one group; more after a backbone was added or a run was killed
        for pools in place_actors("features", [s for s in specs if s.name in names], compute):
            progress = Progress("features", sum(s.rows for s in work), "images")
            for part in slice_work(work, compute.chunk_size):
                _embed_slice(corpora, pools, part, steps, compute, progress)
            progress.finish()


def slice_work(work: list[Shard], chunk_size: int) -> Iterator[list[Shard]]:
    """The shards in slices of at most `SPANS_PER_DATASET` spans, or of one shard."""
    part: list[Shard] = []
    spans = 0
    for shard in work:
        more = -(-shard.rows // (chunk_size * CHUNKS_PER_SPAN))
        if part and spans + more > SPANS_PER_DATASET:
            yield part
            part, spans = [], 0
        part.append(shard)
        spans += more
    if part:
        yield part


def _embed_slice(
    corpora: list[Corpus],
    pools: Pass,
    work: list[Shard],
    steps: dict[str, Step],
    compute: Compute,
    progress: Progress,
) -> None:
    """Embed some shards as one Ray dataset."""
    configure_data(compute)
    specs = [spec for spec, _ in pools]
    geometries = {s.geometry.key: s.geometry for s in specs}
    last_user = {s.geometry.key: s.name for s in specs}
    most = max(pool.max_actors for _, pool in pools)
    spans = cut_spans(work, compute.chunk_size, most)
    gone = {s.id: s.removed for s in work if s.removed}
    decoder = ChunkDecoder(corpora[0].step.store, list(geometries.values()), compute.chunk_size, gone)
    dataset = ray.data.from_items(spans, override_num_blocks=len(spans)).flat_map(decoder)
    for spec, pool in pools:
        drop_pixels = last_user[spec.geometry.key] == spec.name
        arguments = (spec, f"features_{spec.name}", drop_pixels, pool.device, compute.chunk_size)
        dataset = add_pool(dataset, Encoder, arguments, pool, len(spans))
    mine = {s.name: steps[s.name] for s in specs}
    write = partial(write_features, steps=mine)
    receipts = dataset.map_batches(write, batch_size=CHUNKS_PER_PART, batch_format="pandas")
    with in_one_sentence(compute, needs_of(pools)):
        commit_receipts(receipts.iter_rows(), mine, corpora, work, progress)


def cut_spans(shards: list[Shard], chunk_size: int, actors: int) -> list[Row]:
    """What one decoding task each reads: some whole chunks of a shard, few where all actors are to get some.

    A shard of a Parquet file is read by one task, since each would read its row groups from their beginning.
    """
    chunks = sum(-(-s.rows // chunk_size) for s in shards)
    span = chunk_size * min(CHUNKS_PER_SPAN, max(1, chunks // (4 * actors)))
    return [
        {"shard": s.id, "root": s.root, "listing": s.listing, "first": first, "last": min(first + length, s.rows)}
        for s in shards
        for length in [s.rows if s.in_row_groups else span]
        for first in range(0, s.rows, length)
    ]


class ChunkDecoder:
    """Reads and decodes spans of shards into chunks; a plain callable that runs in CPU tasks."""

    def __init__(
        self, store: Store, geometries: list[Geometry], chunk_size: int, gone: dict[str, frozenset[str]]
    ) -> None:
        self.store, self.geometries, self.chunk_size, self.gone = store, geometries, chunk_size, gone

    def __call__(self, span: Row) -> Iterator[Row]:
        """One row for each chunk of a span, see `decode_chunks`."""
        listing = read_listing(self.store, span["listing"]).slice(span["first"], span["last"] - span["first"])
        gone = self.gone.get(span["shard"], frozenset())
        first = span["first"]
        for chunk in decode_chunks(span["root"], listing, self.geometries, self.chunk_size, gone):
            found = zip(chunk["image_ids"], chunk["reasons"], strict=True)
            metrics.rejected([reason for image_id, reason in found if reason and image_id not in gone])
            yield {"shard": span["shard"], "first": first, **chunk}
            first += len(chunk["image_ids"])


def decode_chunks(
    root: str, listing: pa.Table, geometries: list[Geometry], chunk_size: int, gone: frozenset[str] = frozenset()
) -> Iterator[Row]:
    """Read and decode images in chunks: ids, a reason for each that is refused (else ""), and [n, H, W, 3] pixels.

    Images that are `gone` since they were listed keep their place in the chunk and are not looked for. A bad image
    keeps its place with black pixels.
    """
    there = [i not in gone for i in listing["image_id"].to_pylist()]
    limits = max(geometries, key=lambda g: g.max_pixels)
    (draft,) = {g.draft for g in geometries}  # one of the run, so that a crop does not depend on who shares the pass
    found = read_each(root, listing.filter(pa.array(there, pa.bool_())), limits.max_bytes)
    for first in range(0, len(listing), chunk_size):
        image_ids = listing["image_id"].slice(first, chunk_size).to_pylist()
        reasons = [MISSING if i in gone else "" for i in image_ids]
        pixels = {g.key: np.zeros((len(image_ids), g.height, g.width, 3), np.uint8) for g in geometries}
        for i in [i for i, reason in enumerate(reasons) if not reason]:
            try:
                crops = _crops(next(found), geometries, limits.max_pixels, draft)
            except rejection.Rejected as error:
                reasons[i] = str(error)
                continue
            for key, crop in crops.items():
                pixels[key][i] = crop
        yield {"image_ids": image_ids, "reasons": reasons, **pixels}


def _crops(data: bytes | str, geometries: list[Geometry], max_pixels: int, draft: int) -> dict[str, images.Crop]:
    """The crops of one image by the keys of their geometries; raises Rejected, with the reason that came as `data`."""
    if isinstance(data, str):
        raise rejection.Rejected(data)
    image = images.decode(data, max_pixels, draft)
    return {g.key: images.center_crop(image, g) for g in geometries}


def write_features(batch: Any, steps: dict[str, Step]) -> dict[str, list[Any]]:
    """Write the features of some chunks, one part for each (shard, backbone), and say so in receipts."""
    receipts: list[Row] = []
    for shard, chunks in batch.groupby("shard"):
        ids = [list(c) for c in chunks["image_ids"]]
        reasons = {i: r for c, rs in zip(ids, chunks["reasons"], strict=True) for i, r in zip(c, rs, strict=True) if r}
        for name, step in steps.items():
            table = feature_table(
                list(chain.from_iterable(ids)), np.concatenate(list(chunks[f"features_{name}"])), set(reasons)
            )
            receipts.append(
                {
                    "shard": shard,
                    "backbone": name,
                    "part": step.write_part(shard, table),
                    "chunks": json.dumps([[f, len(c)] for f, c in zip(chunks["first"].tolist(), ids, strict=True)]),
                    "rejected": json.dumps(reasons),
                }
            )
    return {k: [r[k] for r in receipts] for k in receipts[0]}


def commit_receipts(
    receipts: Iterable[Row], steps: dict[str, Step], corpora: list[Corpus], shards: list[Shard], progress: Progress
) -> None:
    """Commit each (shard, backbone) as soon as its receipts cover it; what was written twice counts once."""
    by_id = {s.id: s for s in shards}
    open_pairs: dict[tuple[str, str], Row] = {  # pairs that are not committed yet
        (s.id, name): {"covered": {}, "parts": [], "rejected": {}} for s in shards for name in steps
    }
    for receipt in receipts:
        key = (receipt["shard"], receipt["backbone"])
        pair = open_pairs.get(key)
        chunks = dict(json.loads(receipt["chunks"]))
        if pair is None or chunks.keys() <= pair["covered"].keys():
            continue
        pair["covered"].update(chunks)
        pair["parts"].append(receipt["part"])
        pair["rejected"].update(json.loads(receipt["rejected"]))
        if receipt["backbone"] == next(iter(steps)):
            progress.advance(sum(chunks.values()))
        shard = by_id[key[0]]
        if sum(pair["covered"].values()) == shard.rows:
            del open_pairs[key]
            _note_missing(corpora, shard, pair["rejected"])
            steps[key[1]].commit(shard.id, rows=shard.rows, parts=pair["parts"], rejected=pair["rejected"])
    if open_pairs:
        raise RuntimeError(f"Features of {len(open_pairs)} (shard, backbone) pairs are incomplete; run the job again.")


def _note_missing(corpora: list[Corpus], shard: Shard, rejected: dict[str, str]) -> None:
    missing = {i for i, reason in rejected.items() if reason == MISSING and i not in shard.removed}
    for corpus in corpora:
        if missing and any(s.id == shard.id for s in corpus.shards):
            corpus.note_missing(shard, missing)


# Reading features.


def feature_table(image_ids: list[str], features: npt.NDArray[np.float16], rejected: set[str]) -> pa.Table:
    """Rows of `schema.features`, without the rejected images."""
    keep = np.array([i not in rejected for i in image_ids], bool)
    dim = features.shape[1]
    flat = pa.array(np.ascontiguousarray(features[keep]).reshape(-1))
    ids = [i for i, k in zip(image_ids, keep, strict=True) if k]
    return pa.table(
        [pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(flat, dim)], schema=schema.features(dim)
    )


def read_features(step: Step, shard: Shard, without: Collection[str] = ()) -> tuple[list[str], npt.NDArray[np.float16]]:
    """Image ids and [n, D] features of a shard, in the order of ids, without images that are gone or in `without`."""
    table = step.read_shard(shard.id)
    ids = table["image_id"].to_pylist()
    dim = table.schema.field("image_features").type.list_size
    features = np.asarray(table["image_features"].combine_chunks().flatten()).reshape(-1, dim)
    row = {image_id: i for i, image_id in enumerate(ids)}  # a part that was written twice counts once
    keep = sorted(i for i in row if i not in shard.removed and i not in without)
    return keep, features[[row[i] for i in keep]]


# Dropping features, and the images that gave none.


def drop_features(step: Step, shards: Iterable[Shard]) -> int:
    """Delete the features of these shards, and remember which images were rejected; returns how many shards.

    The commit goes first: without it nothing reads the parts, so a kill in between leaves orphans and no half shard.
    """
    there = sorted({s.id for s in shards} & step.committed())

    def drop(shard: str) -> None:
        commit = step.read_commit(shard)
        step.write_json(f"dropped/{shard}.json", {"rejected": commit["rejected"]})
        step.store.delete(step.path(f"commits/{shard}.json"))
        for part in commit["parts"]:
            step.store.delete(step.path(part))

    return sum(1 for _ in read_ahead(there, drop))


def rejected_of(step: Step, shard: Shard) -> dict[str, str]:
    """Image id -> reason, for the rejected images of a shard whose features are there."""
    return dict(step.read_commit(shard.id)["rejected"])


def rejected_images(step: Step, shards: Iterable[str]) -> dict[str, dict[str, str]]:
    """Shard id -> image id -> reason, for the images that could not be read; also where features were dropped."""
    there, ids = step.committed(), sorted(set(shards))

    def read(shard: str) -> dict[str, str]:
        folder = "commits" if shard in there else "dropped"
        return dict(step.read_json(f"{folder}/{shard}.json")["rejected"])

    return dict(zip(ids, read_ahead(ids, read), strict=True))


def find_rejected(features: Iterable[Step], corpora: Sequence[Corpus]) -> list[dict[str, str]]:
    """Image id -> reason, for the images of each corpus that some backbone could not embed."""
    found: list[dict[str, str]] = [{} for _ in corpora]
    for step in features:
        by_shard = rejected_images(step, (s.id for c in corpora for s in c.shards))
        for rejected, corpus in zip(found, corpora, strict=True):
            for shard in corpus.shards:
                rejected |= {i: r for i, r in by_shard[shard.id].items() if i not in shard.removed}
    return found


def check_rejected(corpus: Corpus, rejected: dict[str, str], field: str, limit: float) -> Step:
    """Log how many images were rejected and why, and keep all of them in the snapshot of the corpus.

    Rows of Parquet files without bytes are no images (of downloads that failed, for example), and do not count.

    Returns:
        The snapshot.

    Raises:
        JobError: they are more than the share `limit` of the corpus, which `field` sets.
    """
    snapshot = keep_snapshot(corpus, rejected)
    if not rejected:
        return snapshot
    empty = sum(reason == rejection.NO_BYTES for reason in rejected.values())
    unreadable, images = len(rejected) - empty, corpus.images - empty
    share = unreadable / max(1, images)
    reasons = ", ".join(f"{n} {reason}" for reason, n in by_reason(rejected).items())
    of_all = 100 * len(rejected) / corpus.images
    log.warning("%-12s %d images of %s (%.2f %%): %s", "rejected", len(rejected), corpus.name, of_all, reasons)
    if share > limit:
        first = "; ".join(f"{i!r}: {r}" for i, r in sorted(rejected.items())[:3])
        raise JobError(
            f"{unreadable} of {images} images under {corpus.name} are unreadable, more than "
            f"{field} = {limit}; repair them or raise it. All are in "
            f"{snapshot.store.join(snapshot.path(REJECTED))}; the first: {first}."
        )
    return snapshot


def by_reason(rejected: dict[str, str]) -> dict[str, int]:
    """How many images were rejected for each kind of reason, the most frequent first; details are left out."""
    return dict(Counter(reason.partition(":")[0] for reason in rejected.values()).most_common())
