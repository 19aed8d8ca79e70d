"""Thinned corpora against naive counts: which images stay, and that shards know nothing else. No Ray is started."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from upl_ray.config.settings import Compare, Source
from upl_ray.corpus.shards import Corpus, list_corpus
from upl_ray.errors import ConfigError
from upl_ray.storage.store import Store
from upl_ray.studies.samples import read_labeled_images
from upl_ray.studies.thin import is_thinned, kept_rows, thin
from upl_ray.upl.metrics import UNLABELED, Labels

NAMES = ("cat", "dog", "sea")


def labels_of(counts: tuple[int, ...], unlabeled: int = 0) -> Labels:
    labels = np.repeat(np.arange(len(counts)), counts)
    shuffled: Labels = np.random.default_rng(7).permutation(np.concatenate([labels, np.full(unlabeled, UNLABELED)]))
    return shuffled


def sizes(labels: Labels, rows: np.ndarray) -> list[int]:
    """Images of each class that stays, the largest first."""
    return sorted(Counter(labels[rows].tolist()).values(), reverse=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("imbalance", "expected"),
    [
        (1, [50, 50, 50, 50, 50]),
        (50, [50, 19, 7, 3, 1]),  # 50, 18.8, 7.07, 2.66, 1
        (1e6, [50, 2, 1, 1, 1]),  # never none
    ],
)
def test_sizes_fall_geometrically_from_the_largest_class(imbalance: float, expected: list[int], seed: int) -> None:
    labels = labels_of((50,) * 5, unlabeled=9)
    rows = kept_rows(labels, imbalance, 1, seed)
    assert sizes(labels, rows) == expected
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert UNLABELED not in labels[rows]


def test_a_class_gives_no_more_than_it_has() -> None:
    labels = labels_of((3, 40, 0, 40))
    assert kept_rows(labels, 1, 1, 0).tolist() == np.flatnonzero(labels >= 0).tolist()
    for seed in range(10):
        rows = kept_rows(labels, 4, 1, seed)  # 40, 20, 10 in the order of the seed
        order = np.random.default_rng(seed).permutation([0, 1, 3]).tolist()
        given = {c: min(n, int((labels == c).sum())) for c, n in zip(order, (40, 20, 10), strict=True)}
        assert Counter(labels[rows].tolist()) == given


@pytest.mark.parametrize(("share", "classes"), [(1, 10), (0.5, 5), (0.26, 3), (0.01, 1)])
def test_a_share_of_the_classes_stays_whole(share: float, classes: int) -> None:
    labels = labels_of((6,) * 10)
    rows = kept_rows(labels, 1, share, 3)
    assert sizes(labels, rows) == [6] * classes


def test_of_one_seed_less_lies_in_more_and_other_seeds_draw_others() -> None:
    labels = labels_of((30,) * 8)
    for seed in range(5):
        by_imbalance = [set(kept_rows(labels, r, 1, seed).tolist()) for r in (1, 2, 10, 50)]
        assert all(few < many for many, few in itertools.pairwise(by_imbalance))
        by_classes = [set(kept_rows(labels, 1, s, seed).tolist()) for s in (1, 0.75, 0.5, 0.2)]
        assert all(few < many for many, few in itertools.pairwise(by_classes))
    assert len({tuple(kept_rows(labels, 10, 0.5, seed)) for seed in range(20)}) == 20
    assert kept_rows(labels, 10, 0.5, 4).tolist() == kept_rows(labels, 10, 0.5, 4).tolist()


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Twelve cats, six dogs, two seas and one image that is none of them, in shards of four."""
    for name, count in (("cat", 12), ("dog", 6), ("sea", 2), ("else", 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / "images" / name / f"{i:02d}.png")
    return list_corpus(Store(str(tmp_path / "run")), Source(uri=str(tmp_path / "images"), labels="folders"), 4)


def present(corpus: Corpus) -> list[str]:
    return [i for s in corpus.shards for i in corpus.labels(s) if i not in s.removed]


def test_a_thinned_corpus_is_the_given_one_with_images_removed(corpus: Corpus) -> None:
    gone = replace(corpus.shards[0], removed=frozenset({"cat/00.png"}))  # before, and it stays gone
    given = replace(corpus, shards=(gone, *corpus.shards[1:]))
    images = read_labeled_images(given, "folders", NAMES, unreadable={"cat/01.png"})
    for settings in (Compare(imbalance=5), Compare(classes_present=0.7), Compare(imbalance=2, classes_present=0.5)):
        assert is_thinned(settings)
        thinned = thin(images, settings)
        rows = kept_rows(images.labels, settings.imbalance, settings.classes_present, settings.thinning_seed)
        assert sorted(present(thinned)) == [images.ids[i] for i in rows]
        assert thinned.images == len(rows)
        known = {s.id: s for s in given.shards}
        for shard in thinned.shards:
            assert replace(shard, removed=frozenset()) == replace(known[shard.id], removed=frozenset())
            assert shard.removed >= known[shard.id].removed
            assert len(shard.removed) < shard.rows  # nothing reads a shard in vain
    assert not is_thinned(Compare())


def test_what_is_noted_of_a_thinned_corpus_does_not_touch_the_given_one(corpus: Corpus) -> None:
    images = read_labeled_images(corpus, "folders", NAMES, ())
    steps = {thin(images, Compare(imbalance=5, thinning_seed=seed)).step.folder for seed in (0, 0, 1, 2)}
    assert len(steps) == 3
    assert corpus.step.folder not in steps


def test_one_class_is_not_enough(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"compare\.classes_present 0\.1 leaves 1 of the classes .* raise it"):
        thin(read_labeled_images(corpus, "folders", NAMES, ()), Compare(classes_present=0.1))


def test_without_a_labeled_image_there_is_nothing_to_thin(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.labels: no image of .* has a label that is one of the class names"):
        thin(read_labeled_images(corpus, "folders", ("bird",), ()), Compare(imbalance=5))
