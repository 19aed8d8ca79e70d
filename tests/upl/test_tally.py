"""Sums over predictions against naive loops over all rows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from upl_ray.storage import schema
from upl_ray.upl import metrics, tally
from upl_ray.upl.tally import ORDERS, Models, Rows, Tally, join, numbers, tally_predictions, tally_shard, total, votes

MODELS = Models(n_classes=6, labelers=("a", "b", "c"), target="b", n_members=5, min_known=0.3)


def draw(seed: int, n: int = 400) -> Rows:
    rng = np.random.default_rng(seed)
    own = rng.integers(0, 6, (n, 3))
    return Rows(
        image_ids=[f"{seed}/{i}.jpg" for i in range(n)],
        true=np.where(rng.random(n) < 0.2, metrics.UNLABELED, rng.integers(0, 6, n)),
        fused=own[:, 0],
        confidence=rng.random(n).astype(np.float32),
        own=own,
        own_confidence=rng.random((n, 3)).astype(np.float32),
        label=rng.integers(0, 6, n),
        label_confidence=rng.choice(np.array([0.5, 0.6, 0.7], np.float32), n),  # full of ties
        members=rng.integers(0, 6, (n, 5)),
        known=rng.random(n).astype(np.float32),
    )


def take(rows: Rows, order: np.ndarray) -> Rows:
    values = {k: np.asarray(v)[order] for k, v in vars(rows).items()}
    return Rows(**{**values, "image_ids": values["image_ids"].tolist()})


def pseudo_labels(rows: Rows) -> pa.Table:
    columns = [rows.image_ids, rows.fused, rows.confidence, rows.own.tolist(), rows.own_confidence.tolist(), rows.known]
    return pa.table(columns, schema=schema.PSEUDO_LABELS)


def predictions(rows: Rows) -> pa.Table:
    names = [str(x) for x in rows.label]
    columns = [rows.image_ids, rows.label, names, rows.label_confidence, rows.members.tolist(), rows.members[:, 0]]
    columns.append(rows.known)
    return pa.table(columns, schema=schema.PREDICTIONS)


def of_shard(rows: Rows, listed: int | None = None) -> Tally:
    """The tally of a shard as a task returns it: through JSON."""
    true = dict(zip(rows.image_ids, rows.true.tolist(), strict=True))
    joined = join(pseudo_labels(rows), predictions(rows), true)
    found = tally_shard(predictions(rows), joined, true, MODELS, "shard", listed or len(rows.image_ids))
    return Tally.from_json(json.loads(json.dumps(found.to_json())))


def found_in(*parts: Rows) -> dict[str, Any]:
    return numbers(total(map(of_shard, parts)), MODELS)


def test_the_label_free_sums_equal_a_loop_over_all_rows() -> None:
    rows = draw(0)
    found = tally_predictions(predictions(rows), listed=417)
    assert (found.images, found.rejected, found.listed) == (400, 17, 417)
    assert found.class_counts(6).tolist() == [sum(label == c for label in rows.label) for c in range(6)]
    confidence = [float(x) for x in rows.label_confidence]
    assert found.means()["confidence"] == pytest.approx(sum(confidence) / 400)
    assert found.confidence_deviation() == pytest.approx(np.std(confidence, ddof=1))
    agree = [sum(m == label for m in row) / 5 for row, label in zip(rows.members, rows.label, strict=True)]
    assert found.means()["agreement"] == pytest.approx(sum(agree) / 400)
    assert found.means()["rejected"] == 17 / 417


def test_a_shard_of_which_nothing_could_be_read_adds_its_rejected_images_only() -> None:
    rows, nothing = draw(0), take(draw(0), np.arange(0))
    assert tally_predictions(predictions(nothing), listed=2).means() == {"confidence": 0, "agreement": 0, "rejected": 1}
    both = total([of_shard(nothing, listed=2), of_shard(rows)])
    assert (both.images, both.rejected) == (400, 2)
    assert numbers(both, MODELS) == found_in(rows)


def test_the_joined_sums_equal_naive_loops() -> None:
    rows = draw(0)
    found = found_in(rows)
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


def test_changes_examples_and_votes_equal_naive_loops() -> None:
    rows = draw(0)
    found = found_in(rows)
    changed = [i for i in range(400) if rows.own[i, 1] != rows.label[i]]
    assert found["change"]["changed"] == len(changed)
    assert found["change"]["corrected"] == sum(rows.label[i] == rows.true[i] for i in changed)
    assert found["change"]["broken"] == sum(rows.own[i, 1] == rows.true[i] for i in changed)
    moved = [[c, d, sum((rows.own[:, 1] == c) & (rows.label == d))] for c in range(6) for d in range(6) if c != d]
    assert found["moves"] == sorted((m for m in moved if m[2]), key=lambda m: -m[2])
    best = sorted(changed, key=lambda i: (-rows.label_confidence[i], rows.image_ids[i]))[: len(found["examples"])]
    assert [e["image_id"] for e in found["examples"]] == [rows.image_ids[i] for i in best]
    support = [
        (sum(rows.own[i] == rows.fused[i]) / 3 + sum(rows.members[i] == rows.fused[i]) / 5) / 2 for i in range(400)
    ]
    doubtful = sorted(range(400), key=lambda i: (support[i], rows.confidence[i], rows.image_ids[i]))[:48]
    assert [e["image_id"] for e in found["doubtful"]] == [rows.image_ids[i] for i in doubtful]
    assert [e["members_agree"] for e in found["doubtful"]] == [
        pytest.approx(sum(rows.members[i] == rows.fused[i]) / 5) for i in doubtful
    ]
    least = sorted(range(400), key=lambda i: (rows.known[i], rows.confidence[i], rows.image_ids[i]))[:48]
    assert [(e["image_id"], e["known"]) for e in found["least_known"]] == [
        (rows.image_ids[i], float(rows.known[i])) for i in least
    ]
    tally = of_shard(rows).joined
    assert (tally["known_images"], tally["known_below"]) == (400, sum(x < 0.3 for x in rows.known))
    assert sum(found["known_bins"]) == 400
    known = np.flatnonzero(rows.true >= 0)
    assert (found["votes"]["images"], len(found["votes"]["right"])) == (len(known), ORDERS)
    order = np.random.default_rng(ORDERS - 1).permutation(5)
    said = votes(rows.members[known], order)
    assert found["votes"]["right"][-1] == [int((said[:, n] == rows.true[known]).sum()) for n in range(5)]


@pytest.mark.parametrize("seed", range(3))
def test_shards_and_row_order_do_not_change_the_sums(seed: int) -> None:
    rows = draw(seed)
    order = np.random.default_rng(seed).permutation(400)
    one, several = found_in(rows), found_in(take(rows, order[:37]), take(rows, order[37:37]), take(rows, order[37:]))
    for key in one:
        if key in ("bins", "bins_labeled"):
            for who in one[key]:
                np.testing.assert_allclose(several[key][who], one[key][who], rtol=1e-6)
        elif isinstance(one[key], list) and one[key] and isinstance(one[key][0], float):
            np.testing.assert_allclose(several[key], one[key], rtol=1e-6)
        else:
            assert several[key] == one[key], key


def test_json_keeps_every_bit() -> None:
    rows = draw(3)
    true = dict(zip(rows.image_ids, rows.true.tolist(), strict=True))
    kept = tally_shard(predictions(rows), rows, true, MODELS, "shard", 400).to_json()
    assert json.loads(json.dumps(of_shard(rows).to_json())) == kept


def test_without_labels_votes_are_held_against_the_ensemble() -> None:
    rows = dataclasses.replace(draw(4), true=np.full(400, metrics.UNLABELED))
    found = found_in(rows)["votes"]
    assert found["images"] == found["ensemble"] == 400


def test_a_sample_for_votes_is_drawn_from_the_labeled_images_however_few_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tally, "VOTE_IMAGES", 50)
    rows = draw(6)
    for labeled in (60, 400, 0):
        some = dataclasses.replace(rows, true=np.where(np.arange(400) < labeled, 1, metrics.UNLABELED))
        halves = [take(some, np.arange(200)), take(some, np.arange(200, 400))]
        assert found_in(*halves)["votes"]["images"] == pytest.approx(50, abs=20)
        assert found_in(*halves)["votes"] == found_in(some)["votes"]
    assert found_in(dataclasses.replace(rows, true=np.where(np.arange(400) < 30, 1, -1)))["votes"]["images"] == 30


def test_votes_equal_a_naive_count() -> None:
    rng = np.random.default_rng(1)
    members, order = rng.integers(0, 4, (200, 7)), rng.permutation(7)
    for row, said in zip(members.tolist(), votes(members, order).tolist(), strict=True):
        cast = [row[m] for m in order]
        for n in range(1, 8):
            counts = {label: cast[:n].count(label) for label in cast[:n]}
            assert said[n - 1] == max(cast[:n], key=lambda label: counts[label])  # the first among equals


def test_tables_are_joined_by_id_and_never_by_position() -> None:
    rows = draw(5, n=50)
    shuffled = predictions(rows).take(np.random.default_rng(0).permutation(50)[:45])
    there = set(shuffled["image_id"].to_pylist())
    keep = np.array([i for i, image_id in enumerate(rows.image_ids) if image_id in there])
    true = dict(zip(rows.image_ids, rows.true.tolist(), strict=True))
    joined, expected = join(pseudo_labels(rows), shuffled, true), take(rows, keep)
    for field in vars(expected):
        assert np.array_equal(getattr(joined, field), getattr(expected, field)), field


def test_an_image_that_another_labeler_could_not_read_counts_as_a_prediction_and_not_as_joined() -> None:
    rows = draw(7, n=30)
    true = dict(zip(rows.image_ids, rows.true.tolist(), strict=True))
    joined = join(pseudo_labels(rows).slice(10), predictions(rows), true)
    found = tally_shard(predictions(rows), joined, true, MODELS, "shard", 30)
    assert (found.images, found.joined["images"]) == (30, 20)
    right = [sum(rows.label == rows.true), *(sum(rows.members[:, m] == rows.true) for m in range(5))]
    assert found.joined["judged"]["right"].tolist() == right
    assert found.joined["judged"]["right_even"] == right[1]  # the label without class shares is here the first member's
    assert found.joined["judged"]["labeled"] == sum(rows.true >= 0)
