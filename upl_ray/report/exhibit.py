"""A figure with its caption and the table behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

Row = list[Any]
NAMES_OF_PARTS = {"corpus": "corpus", "scored": "held-out images"}


@dataclass(frozen=True)
class Exhibit:
    """A figure that explains itself."""

    name: str  # unique; of its files, too
    title: str
    caption: str  # what to look for
    figure: Figure
    header: list[str]
    rows: list[Row]


def share(value: float) -> str:
    """A share [0-1] as a percentage."""
    return f"{100 * value:.1f} %"


def of_part(part: str, n: int) -> str:
    """The images that numbers are about, in words."""
    return f"{n:,} held-out images" if part == "scored" else f"{n:,} images of the corpus"
