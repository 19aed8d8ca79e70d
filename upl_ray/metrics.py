"""Scores, where true labels exist: accuracy and pseudo-label precision (pure). Labels never flow back into a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from upl_ray.classnames import clean_classname

Labels = npt.NDArray[np.integer[Any]]
UNLABELED = -1  # an image whose folder is no class name; it is not scored


def accuracy(predicted: Labels, true: Labels) -> float:
    """Share of labeled images that are classified right [0-1]; NaN if none is labeled."""
    known = true != UNLABELED
    return float((predicted[known] == true[known]).mean()) if known.any() else float("nan")


def folder_labels(image_ids: list[str], classnames: tuple[str, ...]) -> Labels:
    """True class index of each image from the first folder of its id; UNLABELED where that is no class name."""
    index = {name: i for i, name in enumerate(classnames)}
    folders = (clean_classname(i.split("/", 1)[0]) if "/" in i else "" for i in image_ids)
    return np.array([index.get(f, UNLABELED) for f in folders], np.int64)
