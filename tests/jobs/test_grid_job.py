"""Every pair of choices that the main job offers, in as few whole jobs as that takes: each runs, and once is enough."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import SHORT, committed_rows, contexts, folders, job_config

from upl_ray.pipeline.main import run

pytestmark = pytest.mark.faults  # longer than the gate has time for

AXES: dict[str, tuple[Any, ...]] = {
    "backbones": (["demo:vit_a"], ["demo:vit_b", "demo:rn"]),
    "variants": (["upl*"], ["upl"], ["upl*", "upl"]),
    "keep_features": ("all", "target", "none"),
    "classnames": (None, "folders"),
    "corpus.labels": ("folders", "none"),
    "scored.uri": (None, ""),
    "label.top_k": (1, 4),
    "views.count": (0, 2),
    "train.ensemble": ("probabilities", "logits"),
    "train.precision": ("fp32", "bf16"),
    "train.members": (1, 3),
    "compute.trials": (1, 2),
    "compute.workers_per_trial": (1, 2),
}
Row = tuple[int, ...]


def pairs_of(row: Row) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return set(itertools.combinations(enumerate(row), 2))


def covering(sizes: list[int]) -> list[Row]:
    """Rows of choices that hold every pair of choices: each is the best of some random ones, so the list is short."""
    rng = np.random.default_rng(0)
    wanted = {
        ((i, a), (j, b))
        for (i, n), (j, m) in itertools.combinations(enumerate(sizes), 2)
        for a in range(n)
        for b in range(m)
    }
    rows: list[Row] = []
    while wanted:
        (i, a), (j, b) = min(wanted)
        tries = [[int(rng.integers(n)) for n in sizes] for _ in range(300)]
        for t in tries:
            t[i], t[j] = a, b
        best = max((tuple(t) for t in tries), key=lambda t: len(pairs_of(t) & wanted))
        rows.append(best)
        wanted -= pairs_of(best)
    return rows


ROWS = covering([len(choices) for choices in AXES.values()])


def sections(row: Row) -> dict[str, Any]:
    """The configuration of a row over that of the shortest job."""
    found: dict[str, Any] = {**SHORT, "train": {"members": 2, "epochs": 2}}
    for (field, choices), choice in zip(AXES.items(), row, strict=True):
        value = choices[choice]
        section, _, name = field.rpartition(".")
        if value is not None:
            found |= {section: {**found.get(section, {}), name: value}} if section else {name: value}
    return found


def test_the_rows_hold_every_pair_and_are_few() -> None:
    sizes = [len(choices) for choices in AXES.values()]
    held = set().union(*map(pairs_of, ROWS))
    assert len(held) == sum(n * m for n, m in itertools.combinations(sizes, 2))
    assert len(ROWS) <= 16


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "".join(map(str, row)))
def test_every_pair_of_choices_runs_once_and_is_then_done(
    row: Row, cluster: None, short_world: Path, tmp_path: Path
) -> None:
    config = job_config(short_world, tmp_path / "run", **sections(row))
    summary = run(config)
    assert (summary["status"], summary["images"], summary["rejected"]) == ("done", 80 + 3, 3)
    assert set(summary["scores"]) == set(config.variants)
    for classifier in summary["classifiers"].values():
        learned = contexts(classifier)
        assert len(learned) == config.train.members
        assert np.isfinite(learned).all()
    predicted = committed_rows(tmp_path / "run", Path(summary["predictions"]).name)
    assert len(predicted) == 80 + (20 if config.scored.uris else 0)
    assert (np.diff([len(v) for v in predicted["member_labels"].to_pylist()]) == 0).all()
    kept = [list((tmp_path / "run" / f / "parts").glob("*")) for f in folders(tmp_path / "run", "features")]
    assert sum(map(bool, kept)) == {"all": len(kept), "target": 1, "none": 0}[config.keep_features]
    again = run(config)
    assert again["status"] == "already done"
    assert again["scores"] == summary["scores"]
