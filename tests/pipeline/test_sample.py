"""The sampled images of some shards: weights, and what is left out."""

from __future__ import annotations

import numpy as np
import torch

from upl_ray.pipeline.refinement import _start
from upl_ray.pipeline.sample import Group
from upl_ray.upl.refine import statistics


def draw() -> Group:
    rng = np.random.default_rng(0)
    fused = rng.dirichlet(np.ones(3), 6).astype(np.float32)
    features = [rng.normal(size=(6, d)).astype(np.float16) for d in (4, 5)]
    corrected = np.array([0, 0, 1, 0, 1, 0], np.bool_)
    weights = np.array([1, 1, 0.25, 1, 1, 1], np.float32)  # the first corrected image was not drawn
    known = np.array([1, 0, 1, 1, 0, 1], np.bool_)
    return Group([f"{i}.png" for i in range(6)], ["shard"] * 6, features, fused, corrected, known, weights)


def test_a_corrected_image_that_was_not_drawn_counts_as_one_of_the_images_that_the_sample_stands_for() -> None:
    group = draw()
    z = torch.from_numpy(group.fused)
    found = group.statistics(z)
    whole, one = statistics(group.features, z), statistics([x[2:3] for x in group.features], z[2:3])
    torch.testing.assert_close(found.counts, whole.counts - 0.75 * one.counts, rtol=1e-5, atol=1e-6)
    for a, b, c in zip(found.sums, whole.sums, one.sums, strict=True):
        torch.testing.assert_close(a, b - 0.75 * c, rtol=1e-4, atol=1e-5)
    start = _start(group, {"2.png": 1})
    assert start.anchors.counts.tolist() == [0, 1, 0]
    assert start.everything.counts.tolist() == [5.25]
    torch.testing.assert_close(start.prior, (z.sum(dim=0) - 0.75 * z[2]).double(), rtol=1e-5, atol=1e-6)


def test_unknown_images_are_not_learned_from_unless_a_person_has_corrected_them() -> None:
    assert draw().sampled(1.0) == [0, 2, 3, 4, 5]
    assert draw().rows([0, 2, 4]).weights.tolist() == [1, 0.25, 1]
