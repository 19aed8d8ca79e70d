"""Linear probe: logistic regression on frozen image features (Radford et al. 2021, CLIP, appendix A.3).

Shapes: N images, n labeled images, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from upl_ray.studies.methods.few_shot import FewShot, Fitted

VERSION = 1  # raise when the same samples give another classifier
DECADES = (-6, 6)  # C is searched from 1e-6 to 1e6,
STEPS_PER_DECADE = 8  # in 96 logarithmic steps
MAX_ITERATIONS = 1000


def linear_probe(data: FewShot) -> Fitted:
    """L2-regularised softmax regression by L-BFGS; C is chosen on validation, as in CLIP's paper.

    Minimises `1/2 ||W||^2 + C sum_i CE(softmax(W f_i + b), y_i)`. The search starts at every second decade and halves
    its step around the best C down to an eighth of a decade. Nothing is random. CLIP's paper fits features before
    normalisation, which only moves C.
    """
    fits: dict[int, LogisticRegression] = {}

    def score(step: int) -> float:
        fits[step] = fit_probe(data, c_of(step))
        predicted = fits[step].predict(data.validation_features.numpy())
        return float((predicted == data.validation_labels.numpy()).mean())

    best = search(score)
    probe, classes = fits[best], len(data.text_features)
    return Fitted(lambda x: torch.from_numpy(probe_logits(probe, x, classes)), {"C": c_of(best)})


def fit_probe(data: FewShot, c: float) -> LogisticRegression:
    """The probe of one C; scikit-learn's default is L-BFGS with an L2 penalty."""
    return LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(data.features.numpy(), data.labels.numpy())


def c_of(step: int) -> float:
    """C of a step of the logarithmic scale."""
    return float(10 ** (DECADES[0] + step / STEPS_PER_DECADE))


def search(score: Callable[[int], float]) -> int:
    """The best step found by halving around the peak; among equals the largest C, as in CoOp's linear probe.

    `score` maps a step, 0 to 96, to a validation accuracy. Seven coarse steps first, two decades apart.
    """
    last = (DECADES[1] - DECADES[0]) * STEPS_PER_DECADE
    width = 2 * STEPS_PER_DECADE
    tried = {step: score(step) for step in range(0, last + 1, width)}
    while width > 1:
        width //= 2
        peak = max(tried, key=lambda s: (tried[s], s))
        for step in (peak - width, peak + width):
            if 0 <= step <= last and step not in tried:
                tried[step] = score(step)
    return max(tried, key=lambda s: (tried[s], s))


def probe_logits(probe: LogisticRegression, image_features: Tensor, n_classes: int) -> npt.NDArray[np.float64]:
    """Logits [N, C] of image features [N, D]; minus infinity for classes of which there was no sample."""
    decision = probe.decision_function(image_features.float().numpy())
    if decision.ndim == 1:  # scikit-learn gives one column for two classes
        decision = np.stack([np.zeros_like(decision), decision], axis=1)
    logits = np.full((len(decision), n_classes), -np.inf)
    logits[:, probe.classes_] = decision
    return logits
