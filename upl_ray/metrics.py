"""Scores, where true labels exist: accuracy and pseudo-label precision (pure). Labels never flow back into a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from upl_ray.classnames import clean_classname

Labels = npt.NDArray[np.integer[Any]]
UNLABELED = -1  # an image whose label is no class; it is not scored


def accuracy(predicted: Labels, true: Labels) -> float:
    """Share of labeled images that are classified right [0-1]; NaN if none is labeled."""
    known = true != UNLABELED
    return float((predicted[known] == true[known]).mean()) if known.any() else float("nan")


def true_labels(labels: Iterable[str | None], classnames: tuple[str, ...]) -> Labels:
    """Class index of each label: a class name, or else a class' number from 0; UNLABELED where it is neither."""
    index = {str(i): i for i in range(len(classnames))} | {name: i for i, name in enumerate(classnames)}
    return np.array([index.get(clean_classname(x or ""), UNLABELED) for x in labels], np.int64)
