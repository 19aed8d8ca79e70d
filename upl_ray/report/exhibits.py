"""Every figure of a report, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator

from upl_ray.report import observations, outcomes
from upl_ray.report.exhibit import Exhibit
from upl_ray.report.findings import Findings


def all_exhibits(found: list[Findings], names: tuple[str, ...], top_k: int) -> Iterator[tuple[str, Exhibit]]:
    """Every figure with the section that it stands in."""
    yield "verdict", outcomes.results(found)
    yield "observations", observations.class_bias(found, names)
    if exhibit := observations.labeler_agreement(found):
        yield "observations", exhibit
    for f in found:
        yield "observations", observations.confidence_accuracy(f, names)
    for f in found:
        yield "observations", observations.imbalance(f, names, top_k)
    yield from (
        ("members", e) for e in (outcomes.training(found), outcomes.members(found), outcomes.ensemble_gain(found)) if e
    )
    for f in found:
        yield from (("changes", e) for e in (outcomes.changes(f, names), outcomes.confusion(f, names)) if e)
    yield from (("calibration", outcomes.calibration(f)) for f in found)
