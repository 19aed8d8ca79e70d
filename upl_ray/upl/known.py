"""How far an image shows one of the classes at all: other words compete with them, zero-shot (pure).

The share of probability that falls on the classes in one softmax over classes and negatives: the score of NegLabel
(arXiv 2403.20078) with one group. A word that is nearly a class would take its images, and is left out.

Shapes: N images, C classes, J words, D feature width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NEAREST = 0.93  # cosine to a class from which a word is another name of it
LOGIT_EDGES = np.linspace(-5.0, 5.0, 51)  # of log10(share / (1 - share)): thresholds of any model lie apart


def competing(negatives: Tensor, text_features: Tensor) -> Tensor:
    """Which words compete with the classes: their normalised features [J, D] are near no class [C, D]; [J] bool."""
    return (negatives.float() @ text_features.float().T).amax(dim=1) < NEAREST


def known(image_features: Tensor, text_features: Tensor, negatives: Tensor, logit_scale: float) -> Tensor:
    """Share of probability that falls on the classes while words compete, [N] float32 in [0, 1].

    Args:
        image_features: normalised [N, D].
        text_features: of the classes, normalised [C, D].
        negatives: of the words that compete, normalised [J, D]; without any, every share is 1.
        logit_scale: 1 / temperature, see `zero_shot.probabilities`.
    """
    x = logit_scale * image_features.float()
    classes, others = (torch.logsumexp(x @ t.float().T, dim=1) for t in (text_features, negatives))
    return torch.sigmoid(classes - others)


def is_known(shares: npt.NDArray[np.float32], least: float) -> npt.NDArray[np.bool_]:
    """Which images are known enough to be selected, [N]; the threshold is rounded as the shares [N] are stored."""
    return shares >= np.float32(least)


def count_shares(shares: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Images in each of the bins between `share_edges`, from shares [N]; the outer bins have those beyond, too."""
    x = shares.astype(np.float64).clip(1e-9, 1 - 1e-9)
    logits = np.log10(x / (1 - x)).clip(LOGIT_EDGES[0], LOGIT_EDGES[-1])
    return np.histogram(logits, LOGIT_EDGES)[0].astype(np.int64)


def share_edges() -> npt.NDArray[np.float64]:
    """Bounds of the bins of `count_shares`."""
    edges: npt.NDArray[np.float64] = 1 / (1 + 10.0**-LOGIT_EDGES)
    return edges
