"""The table of a comparison: intervals, records, cells, published accuracies."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest

from upl_ray.studies.table import Row, comparison_cells, published_accuracies, summarize, to_csv, to_markdown
from upl_ray.upl.metrics import paired_interval


def test_a_paired_interval_is_that_of_resampled_images() -> None:
    rng = np.random.default_rng(1)
    mine, other = rng.random(300) < 0.7, np.mean(rng.random((3, 300)) < 0.6, axis=0)
    gap = mine - other
    naive = [gap[rng.integers(0, 300, 300)].mean() for _ in range(4000)]
    ours = paired_interval(gap, 20_000)
    assert ours == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.006)
    half = 1.96 * gap.std() / math.sqrt(300)
    assert ours == pytest.approx((gap.mean() - half, gap.mean() + half), abs=0.006)
    narrow = paired_interval(gap, 20_000, level=0.5)
    assert ours[0] < narrow[0] < gap.mean() < narrow[1] < ours[1]
    for constant in (0.0, 0.25):
        assert paired_interval(np.full(50, constant), 1000) == (constant, constant)


def example() -> tuple[list[Row], np.ndarray[Any, np.dtype[np.int64]]]:
    true = np.array([0, 1, 2, 1])
    wrong = np.array([0, 1, 1, 2])
    members = np.stack([true, wrong], axis=1)
    rows = [
        Row("zero-shot", "CLIP", None, [wrong]),
        Row("upl*", "UPL*", None, [true, np.array([0, 1, 2, 2])], [members, members], [0.5, 0.7]),
        Row("coop", "CoOp", 4),
        Row("tip-adapter", "Tip", 4, [wrong], chosen=[{"alpha": 2.0}]),
    ]
    return rows, true


def test_a_row_has_mean_deviation_difference_and_the_published_accuracy() -> None:
    rows, true = example()
    zero_shot, upl, coop, tip = summarize(rows, true, "caltech101", 500)
    assert zero_shot["accuracy"] == {"mean": 0.5, "deviation": None}
    assert upl["accuracy"]["mean"] == 0.875
    assert upl["accuracy"]["deviation"] == pytest.approx(0.125 * math.sqrt(2))
    assert upl["single_prompt"]["mean"] == 0.75
    assert upl["transductive"]["mean"] == pytest.approx(0.6)
    assert upl["differences"]["zero-shot"]["mean"] == pytest.approx(0.375)
    assert set(upl["differences"]) == {"zero-shot"}
    assert tip["differences"]["upl*"]["mean"] == pytest.approx(-0.375)
    assert tip["chosen"] == [{"alpha": 2.0}]
    assert (coop["accuracy"], coop["differences"], coop["runs"]) == (None, {}, 0)
    assert zero_shot["published"] == {"this_dataset": 0.8609, "mean_of_11": None}
    assert coop["published"] == {"this_dataset": None, "mean_of_11": 0.6684}


def test_a_method_that_was_not_run_is_an_empty_cell_beside_the_published_accuracy() -> None:
    rows, true = example()
    header, *lines = comparison_cells(summarize(rows, true, "", 500))
    coop = dict(zip(header, lines[2], strict=True))
    filled = {"method": "CoOp", "shots": "4", "published, RN50, mean of 11 sets": "66.84"}
    assert {k: v for k, v in coop.items() if v} == filled
    measured = [c for c in header if "published" not in c]
    published = {f"{100 * p:.2f}" for p in (0.6837, 0.6684, 0.6654)}
    assert not published & {dict(zip(header, line, strict=True))[c] for line in lines for c in measured}


def test_the_table_is_the_same_in_markdown_and_csv() -> None:
    rows, true = example()
    lines = comparison_cells(summarize(rows, true, "", 500))
    markdown = [[c.strip() for c in row.strip("|").split("|")] for row in to_markdown(lines).splitlines()]
    assert [markdown[0], *markdown[2:]] == lines == list(csv.reader(io.StringIO(to_csv(lines))))
    assert len({len(row) for row in to_markdown(lines).splitlines()}) == 1
    assert set("".join(markdown[1])) == {"-", ":"}


@pytest.mark.parametrize(
    ("dataset", "method", "shots", "this_dataset", "mean_of_11"),
    [
        ("", "upl*", None, None, 0.6837),
        ("stanford_cars", "upl", None, 0.6213, None),
        ("ucf101", "zero-shot", None, 0.6270, None),
        ("", "coop", 2, None, 0.6221),
        ("", "tip-adapter", 4, None, 0.6654),
        ("", "tip-adapter-f", 8, None, 0.7245),
        ("", "linear-probe", 4, None, None),
    ],
)
def test_published_accuracies_are_those_of_the_papers(
    dataset: str, method: str, shots: int | None, this_dataset: float | None, mean_of_11: float | None
) -> None:
    found = published_accuracies(dataset, method, shots)
    assert (found["this_dataset"], found["mean_of_11"]) == pytest.approx((this_dataset, mean_of_11))
