"""A uniform sample of images, chosen by ids: the same whoever draws it, and a smaller one lies in a larger one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def sampling_rate(per_class: int, n_classes: int, images: int) -> float:
    """Share of the images that gives `per_class` for each class on average [0-1]."""
    return min(1.0, per_class * n_classes / max(images, 1))


def sampled(image_ids: Sequence[str], rate: float) -> list[int]:
    """Positions of the images in the sample of this rate: those whose hash is among the lowest."""
    if rate >= 1:
        return list(range(len(image_ids)))
    limit = int(rate * 2**64)
    return [i for i, image_id in enumerate(image_ids) if _hash(image_id) < limit]


def _hash(image_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big")
