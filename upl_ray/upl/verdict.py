"""Verdict: are new labels better than old ones? Without true labels, a referee decides (pure; ours).

A referee is a backbone whose labels did not flow into what is judged. If its errors do not depend on the change, the
mean of r(new label) - r(old label), r its probabilities, has the sign of the true gain in accuracy. It is a sum over
images, so parts of a corpus add up: `count_votes` of each part, `verdict` of their sum.

Shapes: N images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

ERRORS = 2  # standard errors that a gain must exceed to be one, about 95 %


@dataclass(frozen=True)
class Votes:
    """Sums over some images: what one referee says about labels that change."""

    images: int = 0
    changed: int = 0  # images whose label changes
    gain: float = 0.0  # sum over those of r(new label) - r(old label)
    new: int = 0  # those whose new label is the referee's own
    old: int = 0  # those whose old label is

    def __add__(self, other: Votes) -> Votes:
        """The sums over the images of both."""
        return Votes(
            self.images + other.images,
            self.changed + other.changed,
            self.gain + other.gain,
            self.new + other.new,
            self.old + other.old,
        )

    def mean_gain(self) -> float:
        """Gain per image [-1 to 1]; there must be an image."""
        return self.gain / self.images

    def error(self) -> float:
        """Standard error of the mean gain, where votes are for new, for old or for neither (McNemar 1947).

        Half an image is added to each of the four cells (Agresti and Min 2005), as few images that all vote alike
        would else be certain.
        """
        if not self.changed:
            return 0.0
        return math.sqrt(self.new + self.old + 1 - (self.new - self.old) ** 2 / (self.changed + 2)) / self.images

    def to_json(self) -> dict[str, Any]:
        """JSON values, from which `from_json` makes equal votes."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Votes:
        """Votes from what `to_json` gave."""
        return cls(**value)


def count_votes(referee: Tensor, old: Tensor, new: Tensor) -> Votes:
    """Votes of one referee.

    Args:
        referee: its probabilities [N, C]. Those that were refined by its own features alone tell more than zero-shot
            ones, whose errors are like those of any labels that were made with the same texts.
        old: labels before the change [N].
        new: labels after it [N].
    """
    changed = old != new
    r, old, new = referee[changed].double(), old[changed].long(), new[changed].long()
    own = r.argmax(dim=1)
    gain = r.gather(1, new[:, None]) - r.gather(1, old[:, None])
    return Votes(len(referee), len(r), float(gain.sum()), int((own == new).sum()), int((own == old).sum()))


def verdict(votes: Mapping[str, Votes]) -> dict[str, Any]:
    """The answer of all referees together.

    Args:
        votes: of each referee, by its name. One that saw no image has no say.

    Returns:
        JSON values: `answer` is "better", "worse" or "cannot tell"; `gain` [-1 to 1] per image, its standard `error`,
        and the share of images whose label `changed` [0-1] are means over referees, None without any; `referees`
        holds each one's own gain and error.
    """
    heard = [v for v in votes.values() if v.images]
    gain = error = changed = None
    if heard:
        gain = sum(v.mean_gain() for v in heard) / len(heard)
        # Referees err on the same images. However much they do, the error of the mean is at most the mean of errors.
        error = sum(v.error() for v in heard) / len(heard)
        changed = sum(v.changed / v.images for v in heard) / len(heard)
    return {
        "answer": _answer(gain, error),
        "gain": gain,
        "error": error,
        "changed": changed,
        "referees": {
            name: {"gain": v.mean_gain() if v.images else None, "error": v.error() if v.images else None}
            for name, v in votes.items()
        },
    }


def _answer(gain: float | None, error: float | None) -> str:
    if gain is None or error is None or abs(gain) <= ERRORS * error:
        return "cannot tell"
    return "better" if gain > 0 else "worse"


def describe(found: Mapping[str, Any]) -> str:
    """A verdict in a few words for people."""
    if not found["referees"]:
        return "cannot tell, as no backbone is left to judge: add one, or keep one out of all labels (label.referee)"
    if found["gain"] is None:
        return "cannot tell, as no image could be judged"
    points = f"{100 * found['gain']:+.1f} points, standard error {100 * found['error']:.1f}"
    return f"{found['answer']} ({points}, by {', '.join(found['referees'])})"
