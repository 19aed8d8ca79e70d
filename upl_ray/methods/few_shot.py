"""What every method with labels gets and gives, and how its samples are drawn.

Shapes: N images, n labeled images (shots), m validation images, V views, C classes, D feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upl_ray.metrics import Labels

VALIDATION_SHOTS = 4  # most validation images of a class: min(shots, 4) (CoOp, section 4.1)
HELD_OUT = 0.2  # share of the corpus that is kept for validation where no validation images are given
_TRAIN, _VALIDATION = 0, 1  # separate streams of random numbers


@dataclass(frozen=True)
class FewShot:
    """What a method may see; features are L2-normalised float32, but for the many views. No test image is among it."""

    features: Tensor  # [n, D] of centre crops
    views: Tensor  # [n, V, D] float16 of augmented views, as many as the method reads
    labels: Tensor  # [n]
    validation_features: Tensor  # [m, D]; only to choose hyper-parameters
    validation_labels: Tensor  # [m]
    text_features: Tensor  # [C, D] of the zero-shot template
    logit_scale: float  # 1 / temperature


@dataclass(frozen=True)
class Fitted:
    """A fitted method."""

    logits: Callable[[Tensor], Tensor]  # image features [N, D] -> [N, C]
    chosen: dict[str, float] = field(default_factory=dict)  # hyper-parameters that validation decided


Method = Callable[[FewShot, int], Fitted]  # the second argument seeds everything random


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows [m, C] whose largest entry is at the label [m]."""
    return float((logits.argmax(dim=1) == labels).float().mean())


def held_out(image_id: str) -> bool:
    """True for the share of a corpus that validates where there is no validation split; a function of the id alone."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def draw(labels: Labels, shots: int, seed: int, validation: bool = False) -> list[npt.NDArray[np.int64]]:
    """Rows of up to `shots` random images of each class [C lists]; fewer where a class has fewer (CoOp, section 4.1).

    Draws of one seed are nested: one shot is the first of two. Images without a label are never drawn.

    Args:
        labels: class of each row, in an order that does not depend on how images were read.
        shots: images of a class.
        seed: each seed draws others.
        validation: draws from a stream of random numbers of its own.
    """
    rows = []
    for c in range(int(labels.max(initial=-1)) + 1):
        rng = np.random.default_rng([seed, _VALIDATION if validation else _TRAIN, c])
        rows.append(rng.permutation(np.flatnonzero(labels == c))[:shots])
    return rows


def best_on_validation(
    candidates: Sequence[dict[str, float]], logits: Callable[[dict[str, float]], Tensor], labels: Tensor
) -> dict[str, float]:
    """The first of the candidates with the highest validation accuracy; `logits` gives [m, C] of one of them."""
    scores = [accuracy(logits(candidate), labels) for candidate in candidates]
    return candidates[int(np.argmax(scores))]


def generator(*seed: int) -> torch.Generator:
    """A torch generator seeded by several numbers, as `numpy.random.default_rng` takes them."""
    return torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
