"""The arithmetic of reports against naive loops, published values and other implementations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest

from upl_ray import metrics, schema
from upl_ray.report.analysis import join
from upl_ray.report.read_ahead import read_ahead
from upl_ray.report.tally import ORDERS, Rows, Tally, votes

LABELERS = ("a", "b", "c")


def test_wilson_equals_scipys() -> None:
    for right, n in ((0, 1), (1, 1), (0, 50), (50, 50), (312, 445), (7, 9), (1, 10**7)):
        expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert metrics.wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        metrics.wilson(0, 0)
    with pytest.raises(ValueError, match="at least one image"):
        metrics.paired_difference(0, 0, 0)


def test_paired_intervals_hold_the_true_difference_in_95_of_100_draws() -> None:
    rng = np.random.default_rng(0)
    up, down, n = 0.12, 0.07, 300
    drawn = rng.multinomial(n, [up, down, 1 - up - down], 4000)
    intervals = [metrics.paired_difference(int(g), int(lost), n) for g, lost, _ in drawn]
    assert np.mean([low <= up - down <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


def test_swapping_the_sides_turns_the_difference_around() -> None:
    low, high = metrics.paired_difference(30, 11, 200)
    assert metrics.paired_difference(11, 30, 200) == pytest.approx((-high, -low))


def naive_ece(confidence: list[float], right: list[bool], bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            gap = abs(sum(right[i] for i in inside) - sum(confidence[i] for i in inside)) / len(inside)
            total += gap * len(inside) / len(confidence)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_a_naive_loop_and_adds_over_shards(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = np.append(rng.random(500), [0.0, 1.0])
    right = rng.random(502) < confidence
    whole = metrics.reliability(confidence, right)
    assert metrics.calibration_error(whole) == pytest.approx(
        naive_ece(confidence.tolist(), right.tolist(), metrics.BINS)
    )
    parts = [metrics.reliability(confidence[s], right[s]) for s in (slice(0, 100), slice(100, 502))]
    np.testing.assert_allclose(sum(parts), whole)
    assert whole[:, 0].sum() == 502


def test_votes_equal_a_naive_count() -> None:
    rng = np.random.default_rng(1)
    members, order = rng.integers(0, 4, (200, 7)), rng.permutation(7)
    ours = votes(members, order)
    for row, said in zip(members.tolist(), ours.tolist(), strict=True):
        cast = [row[m] for m in order]
        for n in range(1, 8):
            counts = {label: cast[:n].count(label) for label in cast[:n]}
            assert said[n - 1] == max(cast[:n], key=lambda label: counts[label])  # the first among equals


def draw(seed: int, n: int = 400, c: int = 6, s: int = 5) -> Rows:
    rng = np.random.default_rng(seed)
    own = rng.integers(0, c, (n, len(LABELERS)))
    return Rows(
        image_ids=[f"{seed}/{i}.jpg" for i in range(n)],
        true=np.where(rng.random(n) < 0.2, metrics.UNLABELED, rng.integers(0, c, n)),
        fused=own[:, 0],
        confidence=rng.random(n).astype(np.float32),
        own=own,
        own_confidence=rng.random((n, len(LABELERS))).astype(np.float32),
        label=rng.integers(0, c, n),
        label_confidence=rng.choice(np.array([0.5, 0.6, 0.7], np.float32), n),  # full of ties
        members=rng.integers(0, c, (n, s)),
    )


def take(rows: Rows, order: np.ndarray) -> Rows:
    values = {k: np.asarray(v)[order] for k, v in vars(rows).items()}
    return Rows(**{**values, "image_ids": values["image_ids"].tolist()})


def tally(parts: list[Rows], judged: bool = True, votable: int = 400) -> dict:
    made = Tally(6, LABELERS, "b", 5, votable, judged)
    for part in parts:
        made.add(part, "shard")
    return made.result()


def test_a_tally_equals_naive_loops() -> None:
    rows = draw(0)
    found = tally([rows])
    known = [i for i, t in enumerate(rows.true) if t >= 0]
    assert found["images"] == 400
    assert found["labeled"] == len(known)
    for c in range(6):
        assert found["true"][c] == sum(rows.true[i] == c for i in known)
        assert found["predicted"]["labeler b"][c] == sum(rows.own[:, 1] == c)
        assert found["known"]["fused"][c] == sum(rows.fused[i] == c for i in known)
        assert found["right"]["ensemble"][c] == sum(rows.label[i] == rows.true[i] == c for i in known)
        assert found["class_kept"][c] == sum((rows.fused == c) & (rows.label == c))
        labeled = [float(rows.confidence[i]) for i in known if rows.fused[i] == c]
        assert found["class_confidence_labeled"][c] == pytest.approx(sum(labeled), rel=1e-5)
    pairs = [[c, d, sum(rows.true[i] == c and rows.label[i] == d for i in known)] for c in range(6) for d in range(6)]
    assert found["confusion"] == [pair for pair in pairs if pair[2]]
    images, confidence, right = np.sum(found["bins_labeled"]["target"], axis=0)
    assert (images, right) == (len(known), sum(rows.own[i, 1] == rows.true[i] for i in known))
    assert confidence == pytest.approx(float(rows.own_confidence[known, 1].sum()), rel=1e-5)
    assert found["members_right"] == [sum(rows.members[i, m] == rows.true[i] for i in known) for m in range(5)]
    assert found["pairs_agree"][0][2] == sum(rows.own[:, 0] == rows.own[:, 2])
    assert found["pairs_agree"][1][3] == sum(rows.own[:, 1] == rows.fused)
    changed = [i for i in range(400) if rows.own[i, 1] != rows.label[i]]
    assert found["change"]["changed"] == len(changed)
    assert found["change"]["corrected"] == sum(rows.label[i] == rows.true[i] for i in changed)
    assert found["change"]["broken"] == sum(rows.own[i, 1] == rows.true[i] for i in changed)
    best = sorted(changed, key=lambda i: (-rows.label_confidence[i], rows.image_ids[i]))[: len(found["examples"])]
    assert [e["image_id"] for e in found["examples"]] == [rows.image_ids[i] for i in best]
    assert found["votes"]["images"] == len(known)
    assert {v[-1] for v in found["votes"]["right"]} <= set(range(len(known)))
    assert len(found["votes"]["right"]) == ORDERS


@pytest.mark.parametrize("seed", range(3))
def test_shards_and_row_order_do_not_change_a_tally(seed: int) -> None:
    rows = draw(seed)
    order = np.random.default_rng(seed).permutation(400)
    parts = [take(rows, order[:37]), take(rows, order[37:37]), take(rows, order[37:])]
    one, several = tally([rows]), tally(parts)
    for key in one:
        if key in ("bins", "bins_labeled"):
            for who in one[key]:
                np.testing.assert_allclose(several[key][who], one[key][who], rtol=1e-6)
        elif isinstance(one[key], list) and one[key] and isinstance(one[key][0], float):
            np.testing.assert_allclose(several[key], one[key], rtol=1e-6)
        else:
            assert several[key] == one[key], key


def test_without_labels_votes_are_held_against_the_ensemble() -> None:
    rows = draw(4)
    found = tally([rows], judged=False)
    assert found["votes"]["images"] == found["votes"]["ensemble"] == 400


def test_a_sample_for_votes_is_drawn_from_the_labeled_images_however_few_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("upl_ray.report.tally.VOTE_IMAGES", 50)
    rows = draw(6)
    few = dataclasses.replace(rows, true=np.where(np.arange(400) < 60, 1, metrics.UNLABELED))
    assert tally([few], votable=60)["votes"]["images"] == pytest.approx(50, abs=10)
    assert tally([few], votable=400)["votes"]["images"] < 20  # as it is for a corpus of which all are labeled
    assert tally([rows], judged=False)["votes"]["images"] == pytest.approx(50, abs=25)


def test_tables_are_joined_by_id_and_never_by_position() -> None:
    rows = draw(5, n=50)
    ids = rows.image_ids
    pseudo = pa.table(
        [ids, rows.fused, rows.confidence, rows.own.tolist(), rows.own_confidence.tolist()], schema=schema.PSEUDO_LABELS
    )
    names = [str(x) for x in rows.label]
    predicted = pa.table(
        [ids, rows.label, names, rows.label_confidence, rows.members.tolist()], schema=schema.PREDICTIONS
    )
    shuffled = predicted.take(np.random.default_rng(0).permutation(50)[:45])
    there = set(shuffled["image_id"].to_pylist())
    keep = np.array([i for i, image_id in enumerate(ids) if image_id in there])
    joined, expected = join(pseudo, shuffled, rows.true), take(rows, keep)
    for field in vars(expected):
        assert np.array_equal(getattr(joined, field), getattr(expected, field)), field


def test_reading_ahead_keeps_the_order_and_never_runs_far_ahead() -> None:
    started: list[int] = []

    def read(item: int) -> int:
        started.append(item)
        return item * item

    for i, value in enumerate(read_ahead(range(20), read, depth=3)):
        assert value == i * i
        assert len(started) <= i + 4
