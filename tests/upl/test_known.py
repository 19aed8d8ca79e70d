"""How known images are, against naive loops."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from upl_ray.upl.known import count_shares, is_known, share_edges
from upl_ray.upl.zero_shot import NEAREST, competing, known


def features(seed: int, *shape: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_shares_are_the_classes_part_of_one_softmax_over_classes_and_words(scale: float) -> None:
    images, classes, words = features(0, 40, 12).half(), features(1, 4, 12), features(2, 30, 12)
    ours = known(images, classes, words, scale).tolist()
    for i, image in enumerate(images):
        logits = [scale * float(image.double() @ t.double()) for t in (*classes, *words)]
        exps = [math.exp(x - max(logits)) for x in logits]
        assert ours[i] == pytest.approx(sum(exps[:4]) / sum(exps), rel=1e-4, abs=1e-7)


def test_without_words_every_image_is_known() -> None:
    assert known(features(0, 3, 8), features(1, 4, 8), torch.zeros(0, 8), 100.0).tolist() == [1.0] * 3


def test_words_near_a_class_do_not_compete() -> None:
    classes = features(3, 5, 16)
    aside = features(4, 5, 16)
    aside = torch.nn.functional.normalize(aside - (aside * classes).sum(1, keepdim=True) * classes, dim=-1)
    others = [
        c * cos + a * math.sqrt(1 - cos**2) for c, a, cos in zip(classes, aside, (1, 0.94, 0.92, 0.5, 0), strict=True)
    ]
    words = torch.stack(others)
    nearest = (words @ classes.T).amax(dim=1)
    assert competing(words, classes).tolist() == (nearest < NEAREST).tolist()
    assert competing(words, classes)[:2].tolist() == [False, False]


def test_a_share_equals_itself_as_a_threshold() -> None:
    shares = np.array([0.1, 0.3, 0.7], np.float32)  # not numbers of double precision
    assert is_known(shares, 0.3).tolist() == [False, True, True]


def test_bins_hold_every_share_between_their_bounds() -> None:
    rng = np.random.default_rng(0)
    shares = np.concatenate([[0, 1], 1 / (1 + np.exp(-rng.normal(0, 6, 1000)))]).astype(np.float32)
    counts, edges = count_shares(shares), share_edges()
    assert counts.sum() == len(shares)
    inner = [int(((shares >= a) & (shares < b)).sum()) for a, b in pairwise(edges[1:-1])]
    assert np.abs(counts[1:-1] - inner).sum() <= 2  # of those at a bound, rounding decides
