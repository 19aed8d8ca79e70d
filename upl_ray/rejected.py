"""Images that could not be read: counted, told, written down, and a reason to stop above a configured share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa

from upl_ray import schema
from upl_ray.artifacts import Artifact, Store
from upl_ray.config import JobError
from upl_ray.corpus import Corpus
from upl_ray.features import rejected_images

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
        first = "; ".join(f"{i!r}: {r}" for i, r in sorted(rejected.items())[:3])
        raise JobError(
            f"{len(rejected)} of {corpus.images} images under {corpus.name} are unreadable, more than "
            f"{field} = {limit}; mend them or raise it. "
            f"All are in {store.join('rejected.parquet')}; the first: {first}."
        )


def by_reason(rejected: dict[str, str]) -> dict[str, int]:
    """How many images were rejected for each kind of reason, the most frequent first; details are left out."""
    return dict(Counter(reason.partition(":")[0] for reason in rejected.values()).most_common())


def rejected_table(rejected: dict[str, str]) -> pa.Table:
    """Images that could not be read, with their reasons: rows of `schema.REJECTED`."""
    rows = [{"image_id": i, "reason": r} for i, r in sorted(rejected.items())]
    return pa.Table.from_pylist(rows, schema=schema.REJECTED)
