"""Published accuracies [%] of RN50, to stand beside one's own and never among them.

CLIP and UPL are from UPL's paper (arXiv 2204.03649). The averages at 2, 4 and 8 shots are those of CoOp (arXiv
2109.01134) and Tip-Adapter (arXiv 2111.03930).
"""

from __future__ import annotations

# (method, shots) -> accuracy on one data set
HERE: dict[str, dict[tuple[str, int | None], float]] = {
    "caltech101": {("zero-shot", None): 86.09, ("upl", None): 89.94},
    "oxford_pets": {("zero-shot", None): 85.83, ("upl", None): 88.28},
    "ucf101": {("zero-shot", None): 62.70, ("upl", None): 67.17},
    "sun397": {("zero-shot", None): 60.18, ("upl", None): 63.98},
    "stanford_cars": {("upl", None): 62.13},
}

# (method, shots) -> average over the 11 data sets
MEAN: dict[tuple[str, int | None], float] = {
    ("upl*", None): 68.37,
    ("coop", 2): 62.21,
    ("coop", 4): 66.84,
    ("coop", 8): 70.05,
    ("tip-adapter", 2): 64.62,
    ("tip-adapter", 4): 66.54,
    ("tip-adapter", 8): 68.50,
    ("tip-adapter-f", 2): 66.65,
    ("tip-adapter-f", 4): 69.67,
    ("tip-adapter-f", 8): 72.45,
}


def published(dataset: str, method: str, shots: int | None) -> tuple[float | None, float | None]:
    """Accuracy on this data set and average of 11 [0-1]; None where it is not known here."""
    here, mean = HERE.get(dataset, {}).get((method, shots)), MEAN.get((method, shots))
    return (None if here is None else here / 100), (None if mean is None else mean / 100)
