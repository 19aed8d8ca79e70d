"""Images that could not be read: counted, told, written down, and a reason to stop above a configured share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from upl_ray import schema
from upl_ray.artifacts import Artifact, Store
from upl_ray.config import JobError
from upl_ray.corpus import Corpus
from upl_ray.features import rejected_images
from upl_ray.web import MISSING

log = logging.getLogger(__name__)


def find_rejected(features: Iterable[Artifact], corpora: Sequence[Corpus]) -> list[dict[str, str]]:
    """Image id -> reason, for the images of each corpus that some backbone could not embed."""
    found: list[dict[str, str]] = [{} for _ in corpora]
    for artifact in features:
        by_shard = rejected_images(artifact, (s.id for c in corpora for s in c.shards))
        for rejected, corpus in zip(found, corpora, strict=True):
            for shard in corpus.shards:
                rejected |= {i: r for i, r in by_shard[shard.id].items() if i not in shard.removed}
    return found


def check_rejected(store: Store, corpus: Corpus, rejected: dict[str, str], field: str, limit: float) -> None:
    """Log how many images were rejected and why.

    Raises:
        JobError: they are more than the share `limit` of the corpus, which `field` sets; all of them are written to
            `rejected.parquet`.
    """
    if not rejected:
        return
    share = len(rejected) / corpus.images
    reasons = ", ".join(f"{n} {reason}" for reason, n in by_reason(rejected).items())
    log.warning("%-12s %d images of %s (%.2f %%): %s", "rejected", len(rejected), corpus.name, 100 * share, reasons)
    if share > limit:
        store.write_table("rejected.parquet", rejected_table(rejected))
        forget_missing(corpus, rejected)
        first = "; ".join(f"{i!r}: {r}" for i, r in sorted(rejected.items())[:3])
        raise JobError(
            f"{len(rejected)} of {corpus.images} images under {corpus.name} are unreadable, more than "
            f"{field} = {limit}; mend them or raise it. "
            f"All are in {store.join('rejected.parquet')}; the first: {first}."
        )


def forget_missing(corpus: Corpus, rejected: Mapping[str, str]) -> None:
    """Take listed images that were away when they were read for gone: the next listing that finds them lists them anew.

    To be called when nothing more is made of the corpus. What a manifest names may never have been there; it is looked
    for again when its version changes.

    Args:
        corpus: as it was listed.
        rejected: image id -> reason.
    """
    missing = {i for i, reason in rejected.items() if reason == MISSING}
    manifest = corpus.artifact.manifest()
    if not missing or manifest is None:
        return
    records, retired = manifest["shards"], set(manifest.get("retired", []))
    for shard in (s for s in corpus.shards if not (s.named or s.archive)):
        away = missing.intersection(corpus.listing(shard, ["image_id"])["image_id"].to_pylist())
        for record in (r for of_root in records.values() for r in of_root if away and r["id"] == shard.id):
            record["removed"] = sorted({*record["removed"], *away})
            if len(record["removed"]) == shard.rows:
                retired.add(shard.id)
    shards = {root: [r for r in of_root if r["id"] not in retired] for root, of_root in records.items()}
    images = sum(r["rows"] - len(r["removed"]) for of_root in shards.values() for r in of_root)
    corpus.artifact.finish(roots=manifest["roots"], images=images, shards=shards, retired=sorted(retired))


def by_reason(rejected: dict[str, str]) -> dict[str, int]:
    """How many images were rejected for each kind of reason, the most frequent first; details are left out."""
    return dict(Counter(reason.partition(":")[0] for reason in rejected.values()).most_common())


def rejected_table(rejected: dict[str, str]) -> pa.Table:
    """Images that could not be read, with their reasons: rows of `schema.REJECTED`."""
    rows = [{"image_id": i, "reason": r} for i, r in sorted(rejected.items())]
    return pa.Table.from_pylist(rows, schema=schema.REJECTED)
