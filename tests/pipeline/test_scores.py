"""The scores of a real run, made in Ray tasks, against one loop over its shards and over all of its rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from worlds import SHORT, committed_rows, job_config

from upl_ray.demo.digits import CLASSNAMES
from upl_ray.pipeline.inputs import prepare
from upl_ray.pipeline.plan import plan_run
from upl_ray.pipeline.scores import ScoreTask, labeled_sources, selected_images, store_scores, tally_of
from upl_ray.storage.chain import open_chain
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.upl.tally import Models


def test_scores_made_in_tasks_are_those_of_a_loop_bit_for_bit(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path
) -> None:
    store = Store(short_run["storage"])
    inputs = prepare(job_config(short_world, short_run["storage"], **SHORT))
    ((variant, made),) = short_run["folders"]["variants"].items()
    chain = open_chain(store, made)
    assert plan_run(inputs).chains[variant] == chain  # nothing would be made again
    models = Models(10, tuple(short_run["scores"][variant]["labelers"]), short_run["target"], 2)
    elsewhere = replace(chain, scores=Step(Store(str(tmp_path)), "scores", "0" * 12))
    task = ScoreTask(elsewhere, labeled_sources(inputs), models, inputs.classnames)
    assert len(task.shards()) > 8
    chosen = selected_images(chain.selection)
    store_scores(task, ((part, *tally_of(task, part, s, chosen.get(s.id, {}))) for part, s in task.shards()))
    ours, theirs = elsewhere.scores.manifest(), chain.scores.manifest()
    differing = {name for name in ours if ours[name] != theirs[name]}
    assert differing <= {"fingerprint", "provenance"}  # the hashes of both tables are equal, too


def test_accuracies_are_those_of_a_loop_over_all_rows(short_run: dict[str, Any], short_world: Path) -> None:
    (scores,) = short_run["scores"].values()
    rows = committed_rows(short_run["storage"], Path(short_run["predictions"]).name).to_pylist()
    for part in ("corpus", "scored"):
        mine = [r for r in rows if (short_world / part / r["image_id"]).exists()]
        true = [CLASSNAMES.index(r["image_id"].partition("/")[0]) for r in mine]
        found = scores["predictions"][part]
        assert (found["images"], found["labeled"]) == (len(mine), len(mine))
        right = sum(r["label"] == t for r, t in zip(mine, true, strict=True))
        assert found["accuracy"]["ensemble"] == right / len(mine)
        members = [sum(r["member_labels"][m] == t for r, t in zip(mine, true, strict=True)) for m in range(2)]
        assert [found["accuracy"][f"member-0{m}"] for m in range(2)] == [n / len(mine) for n in members]
        counts = Counter(r["label"] for r in mine)
        assert found["images_per_class"] == [counts[c] for c in range(10)]
