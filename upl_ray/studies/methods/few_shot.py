"""Input and output of every method with labels, and the choice of hyper-parameters on validation images.

Shapes: N images, n labeled images (shots), m validation images, V views, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class FewShot:
    """Everything that a method may see: no test image. Features are L2-normalised float32, but for the many views."""

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


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows [m, C] whose largest entry is at the label [m]."""
    return float((logits.argmax(dim=1) == labels).float().mean())


def best_on_validation(
    candidates: Sequence[dict[str, float]], logits: Callable[[dict[str, float]], Tensor], labels: Tensor
) -> dict[str, float]:
    """The first of the candidates with the highest validation accuracy; `logits` gives [m, C] of one of them."""
    scores = [accuracy(logits(candidate), labels) for candidate in candidates]
    return candidates[int(np.argmax(scores))]


def generator(*seed: int) -> torch.Generator:
    """A torch generator seeded by several numbers, as `numpy.random.default_rng` takes them."""
    return torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
