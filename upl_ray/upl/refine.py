"""Refinement: fused labels, corrected by the images' own features, since images of one class lie together (pure; ours).

A Gaussian mixture over the features of all labelers. Each image's fused zero-shot probabilities are its prior, class
means are drawn towards the most confident images (anchors), the variance is one diagonal a labeler, and the likelihood
counts `beta` times, averaged over feature dimensions and labelers, as these are far from independent. Every sweep needs
sums over images only, so parts of a corpus add up: `statistics` of each part, `update` of their sum.

Shapes: N images, C classes, B labelers, D_b feature width of labeler b.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

VERSION = 1  # raise when the same features give other labels
ANCHORS = 8  # most confident images of each class, which its mean is drawn towards
MIN_VARIANCE = 1e-6
MIN_PROBABILITY = 1e-30  # of a class in a prior, which float32 rounds to 0 far from any image
MIN_SHARE = 1e-4  # of a class in logit adjustment; of many classes a tenth of an even share
ROWS_AT_ONCE = 2048  # images: in float32 their features stay in cache; slices of 8192 take a third longer
Features = Sequence[Tensor]  # of each labeler, [N, D_b]


@dataclass(frozen=True)
class Statistics:
    """Sums over some images, all in float64: those of several parts are added."""

    counts: Tensor  # [C] of memberships
    sums: tuple[Tensor, ...]  # B x [C, D_b] of features, weighted by memberships
    squares: tuple[Tensor, ...]  # B x [D_b] of squared features, weighted by memberships of any class

    def __add__(self, other: Statistics) -> Statistics:
        """The sums over the images of both."""
        return Statistics(
            self.counts + other.counts,
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )


@dataclass(frozen=True)
class Mixture:
    """The fitted parameters, float64."""

    means: tuple[Tensor, ...]  # B x [C, D_b]
    variances: tuple[Tensor, ...]  # B x [D_b]
    class_shares: Tensor  # [C] that memberships were weighted with


@dataclass(frozen=True)
class Refined:
    """Refined labels of N images."""

    probabilities: Tensor  # [N, C] float32
    class_shares: Tensor  # [C] float64, estimated shares of the classes, which sum to 1
    mixture: Mixture  # gives the probabilities of further images, see `memberships`


def refine(
    features: Features,
    probabilities: Tensor,
    *,
    beta: float = 5.0,
    kappa: float = 8.0,
    sweeps: int = 10,
    fixed: Tensor | None = None,
) -> Refined:
    """Refine fused probabilities by the features that they were made from.

    Args:
        features: normalised image features of each of B labelers, [N, D_b].
        probabilities: their fused zero-shot probabilities [N, C].
        beta: weight of the likelihood against the prior.
        kappa: images that the anchors of a class count for in its mean.
        sweeps: how often memberships and parameters are computed in turn.
        fixed: [N] bool, rows of `probabilities` that are known, and stay as they are.
    """
    anchors = anchor_memberships(probabilities)
    start = statistics(features, anchors)
    everything = statistics(features, probabilities.new_ones(len(probabilities), 1))
    anchor_means = means_of_anchors(start, everything)
    shares = probabilities.double().mean(dim=0)
    total = start
    for _ in range(sweeps):
        mixture = update(total, anchor_means, shares, kappa)
        z = memberships(features, probabilities, mixture, beta, fixed)
        total = statistics(features, z)
        shares = class_shares(total)
    return Refined(z, shares, mixture)


def anchor_memberships(probabilities: Tensor) -> Tensor:
    """1 for the `ANCHORS` most confident images of each class among those it is the argmax of, else 0: [N, C].

    Among equally confident images the first rows count.
    """
    confidence, label = probabilities.max(dim=1)
    z = torch.zeros_like(probabilities, dtype=torch.float32)
    order = torch.argsort(confidence, descending=True, stable=True)
    order = order[torch.argsort(label[order], stable=True)]  # class by class, the most confident first
    counts = torch.bincount(label, minlength=z.shape[1]).tolist()
    for c, rows in enumerate(order.split(counts)):
        z[rows[:ANCHORS], c] = 1
    return z


def statistics(features: Features, z: Tensor) -> Statistics:
    """Sums over images with features B x [N, D_b] and memberships [N, C]."""
    counts = z.new_zeros(z.shape[1], dtype=torch.float64)
    sums = [z.new_zeros(z.shape[1], x.shape[1], dtype=torch.float64) for x in features]
    squares = [z.new_zeros(x.shape[1], dtype=torch.float64) for x in features]
    for rows in _slices(len(z)):
        weight = z[rows].float()
        counts += weight.sum(dim=0)
        for b, x in enumerate(features):
            part = x[rows].float()
            sums[b] += weight.T @ part
            squares[b] += weight.sum(dim=1) @ part.square()
    return Statistics(counts, tuple(sums), tuple(squares))


def means_of_anchors(anchors: Statistics, everything: Statistics) -> tuple[Tensor, ...]:
    """Mean features of the anchors of each class, B x [C, D_b]; of all images for a class that has none.

    Args:
        anchors: sums over images with `anchor_memberships`.
        everything: sums over all images, each a member of one class, C = 1.
    """
    counts = anchors.counts[:, None]
    means = []
    for some, all_ in zip(anchors.sums, everything.sums, strict=True):
        means.append(torch.where(counts > 0, some / counts.clamp(min=1), all_ / everything.counts))
    return tuple(means)


def update(total: Statistics, anchor_means: Sequence[Tensor], shares: Tensor, kappa: float) -> Mixture:
    """Means and variances from the sums over all images.

    Args:
        total: sums over all images.
        anchor_means: see `means_of_anchors`.
        shares: class shares [C], which the next memberships are weighted with.
        kappa: see `refine`.
    """
    means, variances = [], []
    n = total.counts[:, None]  # [C, 1]
    for sums, squares, anchor in zip(total.sums, total.squares, anchor_means, strict=True):
        mean = (sums + kappa * anchor) / (n + kappa)
        spread = squares - 2 * (mean * sums).sum(dim=0) + (n * mean.square()).sum(dim=0)
        means.append(mean)
        variances.append((spread / total.counts.sum()).clamp(min=MIN_VARIANCE))
    return Mixture(tuple(means), tuple(variances), shares)


def class_shares(total: Statistics) -> Tensor:
    """Estimated shares of the classes [C], float64, with one more image of each: no class is impossible."""
    return (total.counts + 1) / (total.counts.sum() + len(total.counts))


def floored(shares: Tensor) -> Tensor:
    """Class shares [C] for logit adjustment: none is so small that its class could never be learned or said."""
    return shares.clamp(min=min(MIN_SHARE, 0.1 / len(shares)))


def memberships(
    features: Features, probabilities: Tensor, mixture: Mixture, beta: float, fixed: Tensor | None = None
) -> Tensor:
    """Refined probabilities of images [N, C] float32, from features B x [N, D_b] and fused probabilities [N, C].

    Rows that are `fixed` [N] stay as they are.

    The squares of the features are the same for all classes, so that what is left is one linear layer a labeler.
    """
    scale = [beta / (len(features) * x.shape[1]) for x in features]
    weights = [(s * m / v).float() for s, m, v in zip(scale, mixture.means, mixture.variances, strict=True)]
    bias = mixture.class_shares.log()
    for s, m, v in zip(scale, mixture.means, mixture.variances, strict=True):
        bias = bias - s / 2 * (m.square() / v).sum(dim=1)
    z = torch.empty_like(probabilities, dtype=torch.float32)
    for rows in _slices(len(z)):
        logits = probabilities[rows].float().clamp(min=MIN_PROBABILITY).log() + bias.float()
        for x, weight in zip(features, weights, strict=True):
            logits += x[rows].float() @ weight.T
        z[rows] = logits.softmax(dim=1)
    return z if fixed is None else torch.where(fixed[:, None], probabilities.float(), z)


def _slices(n: int) -> Iterator[slice]:
    return (slice(first, first + ROWS_AT_ONCE) for first in range(0, n, ROWS_AT_ONCE))
