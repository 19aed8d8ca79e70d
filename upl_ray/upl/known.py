"""Shares of probability that stay on the classes while other words compete: a threshold, and their distribution (pure).

How they come about: `zero_shot.known`. Shapes: N images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LOGIT_EDGES = np.linspace(-5.0, 5.0, 51)  # of log10(share / (1 - share)): thresholds of any model lie apart


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
