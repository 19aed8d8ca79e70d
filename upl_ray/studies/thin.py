"""A given corpus made uneven, long-tailed or with classes absent, to see what methods make of such mixtures.

A thinned corpus is the given one with all other images removed from its shards: what storage holds of them serves both,
and nothing is copied or embedded again. True labels make the corpus; methods without labels see its images alone.

Shapes: N images.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from upl_ray.config.settings import Compare
from upl_ray.corpus.shards import Corpus
from upl_ray.errors import ConfigError
from upl_ray.storage.step import Step
from upl_ray.studies.samples import LabeledImages
from upl_ray.upl.metrics import Labels

log = logging.getLogger(__name__)


def is_thinned(settings: Compare) -> bool:
    """True if the settings ask for another corpus than the given one."""
    return settings.imbalance > 1 or settings.classes_present < 1


def thin(images: LabeledImages, settings: Compare) -> Corpus:
    """The corpus of some labeled images, thinned to a mixture of its classes; images without a class do not stay.

    Its step is its own, named by the images that stay: what is noted there does not touch the given corpus.

    Raises:
        ConfigError: there is no labeled image, or fewer than two classes stay.
    """
    corpus = images.corpus
    if not images.ids:
        raise ConfigError(f"corpus.labels: no image of {corpus.name} has a label that is one of the class names.")
    rows = kept_rows(images.labels, settings.imbalance, settings.classes_present, settings.thinning_seed)
    kept = {images.ids[i] for i in rows}
    shards = []
    for shard in corpus.shards:
        listed = set(corpus.listing(shard, ["image_id"])["image_id"].to_pylist())
        removed = shard.removed | (listed - kept)
        if listed - removed:
            shards.append(replace(shard, removed=frozenset(removed)))
    thinned = replace(corpus, shards=tuple(shards), added=0)
    step = Step.of(corpus.step.store, "thinned", version=1, inputs={"images": thinned.digest})
    counts = [n for n in np.bincount(images.labels[rows]).tolist() if n]
    if len(counts) < 2:
        raise ConfigError(
            f"compare.classes_present {settings.classes_present:g} leaves {len(counts)} of the classes of the corpus, "
            f"and there is nothing to tell apart; raise it."
        )
    log.info("%-12s %d images of %d classes, %d to %d", "thinned", len(rows), len(counts), min(counts), max(counts))
    return replace(thinned, step=step)


def kept_rows(labels: Labels, imbalance: float, classes_present: float, seed: int) -> npt.NDArray[np.int64]:
    """Rows of the images that stay, ascending: those of some classes, whose sizes fall geometrically.

    Of `C` classes that stay, the k-th in a random order keeps `most * imbalance ** (-k / (C - 1))` of its images, where
    `most` is the size of the largest: at least one, and no more than it has (CIFAR-LT's profile, arXiv 1901.05555,
    section 5). Of one seed, fewer classes are the first of more, and a higher imbalance keeps some of the same images.

    Args:
        labels: class of each image [N], in an order that does not depend on how images were read.
        imbalance: size of the largest class over that of the smallest.
        classes_present: share of the classes with images that stay (0-1].
        seed: of classes and images.
    """
    of_class = {int(c): np.flatnonzero(labels == c) for c in np.unique(labels[labels >= 0])}
    order = np.random.default_rng(seed).permutation(list(of_class)).tolist()
    order = order[: max(1, round(classes_present * len(order)))]
    most = max(len(of_class[c]) for c in order)
    kept = []
    for k, c in enumerate(order):
        size = max(1, round(most * imbalance ** (-k / max(len(order) - 1, 1))))
        kept.append(np.random.default_rng([seed, c]).permutation(of_class[c])[:size])
    return np.sort(np.concatenate(kept))
