"""Metrics of a running job for Ray's dashboard and Prometheus, through `ray.util.metrics`.

Ray puts `ray_` before each name, and `_total` behind that of a counter: `rate(ray_upl_images_encoded_total[1m])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from ray.util.metrics import Counter, Gauge


def encoded(backbone: str, images: int, seconds: float) -> None:
    """Count the images that an actor has encoded, and report its speed."""
    tags = {"backbone": backbone}
    counter("upl_images_encoded", "images encoded, by backbone", "backbone").inc(images, tags)
    gauge("upl_images_per_second", "of the last chunk of one actor, by backbone", "backbone").set(
        images / seconds, tags
    )


def rejected(reasons: list[str]) -> None:
    """Count images that could not be read, by kind of reason."""
    for reason in reasons:
        kind = reason.partition(":")[0]
        counter("upl_images_rejected", "images that could not be read, by reason", "reason").inc(1, {"reason": kind})


def trained(variant: str, members: Sequence[int], losses: Sequence[float]) -> None:
    """Count an epoch of some members of a variant, and report their losses."""
    counter("upl_member_epochs", "epochs done, summed over members").inc(len(members))
    for member, loss in zip(members, losses, strict=True):
        gauge("upl_loss", "training loss of the last epoch, by member", "variant", "member").set(
            loss, {"variant": variant, "member": str(member)}
        )


@cache
def counter(name: str, description: str, *tags: str) -> Counter:
    """The counter of this name; one in each process."""
    return Counter(name, description, tag_keys=tags)


@cache
def gauge(name: str, description: str, *tags: str) -> Gauge:
    """The gauge of this name; one in each process."""
    return Gauge(name, description, tag_keys=tags)
