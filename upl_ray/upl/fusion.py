"""Fusion: the labelers' probabilities are averaged, and each image gets a pseudo-label (paper, section 3.2); pure.

Shapes: N images, C classes, B labelers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float32]


def fuse(image_ids: list[list[str]], probabilities: list[Probabilities]) -> tuple[list[str], Probabilities]:
    """Average the labelers' probabilities, joined by image id.

    Args:
        image_ids: for each of B labelers its N ids, in any order.
        probabilities: for each labeler [N, C] float32.

    Returns:
        The ids in the first labeler's order and the mean probabilities [N, C] in float32.

    Raises:
        ValueError: an id occurs twice, or the labelers have different images.
    """
    reference = image_ids[0]
    position = {image_id: i for i, image_id in enumerate(reference)}
    if len(position) != len(reference):
        raise ValueError(f"Image ids of one labeler repeat: {len(reference)} rows, {len(position)} ids.")
    total = np.zeros(probabilities[0].shape, np.float64)  # [N, C]
    for labeler, (ids, p) in enumerate(zip(image_ids, probabilities, strict=True)):
        if len(ids) != len(reference) or set(ids) != position.keys():
            odd = sorted(set(ids) ^ position.keys())[:3]
            raise ValueError(
                f"Labeler {labeler} has {len(ids)} images and the first has {len(reference)}; "
                f"fusion needs the same ones. Examples of the difference: {odd}."
            )
        total[[position[i] for i in ids]] += p  # unique rows, so += adds each once
    return reference, (total / len(probabilities)).astype(np.float32)


def assign(probabilities: Probabilities) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Pseudo-label and confidence of each image: argmax (the lowest class among equals) and maximum of [N, C]."""
    return probabilities.argmax(axis=1).astype(np.int32), probabilities.max(axis=1)
