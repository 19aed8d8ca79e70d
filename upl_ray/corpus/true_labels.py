"""True labels of images: used for scores, and to name the classes, never to make pseudo-labels."""

from __future__ import annotations

import numpy as np

from upl_ray.config.classnames import check_classnames
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.errors import ConfigError
from upl_ray.storage.store import read_ahead
from upl_ray.upl.metrics import UNLABELED, Labels, true_labels


def true_labels_of(corpus: Corpus, shard: Shard, ids: list[str], rule: str, classnames: tuple[str, ...]) -> Labels:
    """True classes [N] of images of a shard; UNLABELED where there are none, and everywhere by the rule `none`."""
    if rule == "none":
        return np.full(len(ids), UNLABELED)
    given = corpus.labels(shard)
    return true_labels([given[i] for i in ids], classnames)


def check_labels(corpus: Corpus, rule: str, field: str, classnames: tuple[str, ...]) -> None:
    """Check that at least one label of a corpus is a class, unless the rule is `none`.

    Raises:
        ConfigError: none is, so that nothing would be scored.
    """
    if rule == "none":
        return
    first = None
    for shard in corpus.shards:
        given = [x for x in corpus.labels(shard).values() if x is not None]
        if (true_labels(given, classnames) != UNLABELED).any():
            return
        first = first or next(iter(given), None)
    problem = "no image has a label" if first is None else f"no label is a class name; the first label is {first!r}"
    raise ConfigError(
        f"{field}.labels is {rule!r} for {corpus.name}, but {problem}, and the first class is {classnames[0]!r}. "
        f"Make them equal, or set {field}.labels to none."
    )


def folder_names(corpus: Corpus) -> tuple[str, ...]:
    """Class names from the labels that the source gives, such as names of sub-folders: unique, sorted, checked."""
    names: set[str] = set()
    for shard, given in zip(corpus.shards, read_ahead(corpus.shards, corpus.labels), strict=True):
        names |= {x for i, x in given.items() if x and i not in shard.removed}
    return check_classnames(sorted(names))
