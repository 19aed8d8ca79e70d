"""What the nights have seen of a corpus so far, night by night (pure): a mapping that is kept as JSON.

    seen      figures of all images that later ones are compared with
    waiting   shard id -> figures, of the shards that came since and are still too few to be compared
    counts    shard id -> readable and unreadable images, of the shards as they are now
    drift     the newest comparison of each kind, `unreadable` and `classes`; see `drift`
    new, removed, listed_before    what the corpus' last change was [images]
    changes   how many there were: the order of the manifests of several classifiers, whatever the clocks said

Every image counts once, as it was when it came, however short it stays: where a folder's whole content is another one
each night, or every file was touched, tonight's images are still compared with those of all nights before.
"""

from __future__ import annotations

from typing import Any

from upl_ray.drift import compare_classes, compare_unreadable
from upl_ray.figures import Figures, listed, total
from upl_ray.predict_config import Drift

Growth = dict[str, Any]


def start(figures: dict[str, Figures]) -> Growth:
    """The first time: later images are compared with all that are there, given as shard id -> figures."""
    seen = total(figures.values())
    about = {"new": seen["images"], "removed": 0, "listed_before": 0, "changes": 1}
    return {"counts": _counts(figures), "seen": seen, "waiting": {}, "drift": {}, **about}


def carry_over(growth: Growth, figures: dict[str, Figures], own: Growth | None = None, stale: bool = False) -> Growth:
    """The same under another classifier, whose figures of the present shards are given.

    Shards that were seen stay seen, and those that waited wait. What is gone has no figures by this classifier, and no
    longer counts, unless this classifier has seen it itself. The last comparison stands: both of its sides were of one
    classifier.

    Args:
        growth: not changed.
        figures: shard id -> figures.
        own: this classifier's, from before the others' nights.
        stale: the shards are those of an older listing. Those that it lacks are known all the same, and those of them
            that waited will be new to this classifier.
    """
    known = own["counts"].keys() - own["waiting"].keys() if own else set()
    waiting = {i: figures[i] for i in growth["waiting"] if i in figures and i not in known}
    others = [figures[i] for i in sorted(figures) if i in growth["counts"] and i not in waiting and i not in known]
    lost = growth["waiting"].keys() - figures.keys() if stale else ()
    counts = {i: n for i, n in growth["counts"].items() if i not in lost}
    return growth | {"counts": counts, "seen": total([*others, own["seen"]] if own else others), "waiting": waiting}


def grow(growth: Growth, figures: dict[str, Figures]) -> Growth:
    """After a change of the corpus: unknown shards join those that wait.

    Images that come back into a known shard count as new, but wait no second time.
    """
    before, now = growth["counts"], _counts(figures)
    none = [0, 0]
    return growth | {
        "counts": now,
        "waiting": growth["waiting"] | {i: f for i, f in figures.items() if i not in before},
        "new": sum(max(0, n[0] - before.get(i, none)[0]) for i, n in now.items()),
        "removed": sum(max(0, sum(n) - sum(now.get(i, none))) for i, n in before.items()),
        "listed_before": sum(map(sum, before.values())),
        "changes": growth["changes"] + 1,
    }


def compare(growth: Growth, limits: Drift, classnames: tuple[str, ...], about: dict[str, Any]) -> Growth:
    """The images that wait beside all seen before, where both are enough; those that were compared are seen.

    Unreadable images tell nothing about classes and confidence. So the share of unreadable ones is compared as soon as
    `min_images` wait, classes and confidence when so many are readable; until then all wait, and the last comparison of
    that kind stands. As long as fewer than `min_images` were seen, there is nothing to compare with.

    Args:
        growth: not changed.
        limits: the configured ones.
        classnames: of the classifier.
        about: what a comparison says of itself: its time, its classifier.
    """
    new, old = total(growth["waiting"].values()), growth["seen"]
    joined = growth | {"seen": total([old, new]), "waiting": {}}
    if old["images"] < limits.min_images:
        return joined
    drift = dict(growth["drift"])
    if listed(new) >= limits.min_images:
        found = compare_unreadable(new, old)
        if not found.items() <= drift.get("unreadable", {}).items():  # the same images again are no news
            drift["unreadable"] = about | found
    if new["images"] < limits.min_images:
        return growth | {"drift": drift}
    drift["classes"] = about | compare_classes(new, old, classnames)
    return joined | {"drift": drift}


def _counts(figures: dict[str, Figures]) -> dict[str, list[int]]:
    return {i: [f["images"], f["rejected"]] for i, f in figures.items()}
