"""Fusion, pseudo-labels and top-K against naive loops."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from upl_ray.storage import schema
from upl_ray.upl.fusion import assign, fuse
from upl_ray.upl.top_k import samples_per_class, top_k, with_pinned

Row = tuple[str, int, float]
SHARD = "s"
ALPHABET = ["a", "b", "B", "/", ".", "é", "\uffff", "😀"]  # the last two order differently in UTF-16


def random_rows(rng: np.random.Generator, n: int, n_classes: int, decimals: int = 1) -> list[Row]:
    """Rows full of equal confidences, with ids of every length and script."""
    ids: set[str] = set()
    while len(ids) < n:
        ids.add("".join(rng.choice(ALPHABET, rng.integers(1, 8))))
    shuffled = rng.permutation(sorted(ids)).tolist()
    confidences = np.round(rng.random(n), decimals).astype(np.float32).tolist()
    return list(zip(shuffled, rng.integers(0, n_classes, n).tolist(), confidences, strict=True))


def table(rows: list[Row]) -> pa.Table:
    ids, labels, confidences = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            "confidence": pa.array(confidences, pa.float32()),
            "image_id": pa.array(ids, pa.string()),
            "extra": pa.array([0] * len(rows), pa.int8()),
            "pseudo_label": pa.array(labels, pa.int32()),
            "shard": pa.array([SHARD] * len(rows), pa.string()),
        }
    )


def naive_top_k(rows: list[Row], k: int, n_classes: int) -> list[dict[str, object]]:
    chosen = []
    for c in range(n_classes):
        mine = sorted({(-p, i) for i, label, p in rows if label == c})[:k]
        for rank, (p, i) in enumerate(mine):
            chosen.append({"image_id": i, "pseudo_label": c, "confidence": -p, "rank": rank, "shard": SHARD})
    return chosen


def split(rows: list[Row], rng: np.random.Generator) -> list[list[Row]]:
    cuts = sorted(rng.integers(0, len(rows) + 1, rng.integers(0, 9)).tolist())
    return [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]


@pytest.mark.parametrize("seed", range(30))
def test_top_k_equals_naive_loop_for_any_row_order_and_partition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_classes, k = int(rng.integers(1, 7)), int(rng.integers(1, 20))
    rows = random_rows(rng, int(rng.integers(1, 200)), n_classes)
    expected = naive_top_k(rows, k, n_classes)
    for _ in range(3):
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        parts = split(shuffled, rng)
        assert top_k((table(p) for p in parts), k).to_pylist() == expected


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000])
def test_top_k_does_not_depend_on_block_size(block: int) -> None:
    rows = random_rows(np.random.default_rng(5), 150, 4, decimals=2)
    parts = [table(rows[i : i + block]) for i in range(0, len(rows), block)]
    assert top_k(parts, 16).to_pylist() == naive_top_k(rows, 16, 4)


@pytest.mark.parametrize("seed", range(5))
def test_top_k_counts_rows_that_stand_in_several_parts_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 60, 3)
    parts = [table(p) for p in split(rows, rng)]
    again = [table([rows[i] for i in rng.integers(0, len(rows), 40)]) for _ in range(3)]
    assert top_k([*parts, *again, table(rows)], 8).to_pylist() == naive_top_k(rows, 8, 3)


@pytest.mark.parametrize("seed", range(20))
def test_pinned_images_come_first_and_others_fill_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_classes, k = 4, int(rng.integers(1, 6))
    rows = random_rows(rng, 60, n_classes)
    rows = list({i: (i, c, p) for i, c, p in rows}.values())
    pinned = [(i, int(rng.integers(n_classes)), 1.0) for i, _, _ in rows[: int(rng.integers(0, 20))]]
    others = rows[len(pinned) :]
    expected = []
    for c in range(n_classes):
        first = [{"image_id": i, "confidence": 1.0} for i in sorted(i for i, label, _ in pinned if label == c)]
        rest = naive_top_k([r for r in others if r[1] == c], max(0, k - len(first)), n_classes)
        for rank, row in enumerate([*first, *rest]):
            expected.append({**row, "pseudo_label": c, "rank": rank, "shard": SHARD})
    assert with_pinned(top_k([table(others)], k), table(pinned), k).to_pylist() == expected


def test_saturated_confidences_are_chosen_by_id() -> None:
    rows = [(f"{i:03d}", 0, 1.0) for i in reversed(range(100))]
    assert top_k([table(rows)], 3)["image_id"].to_pylist() == ["000", "001", "002"]


def test_neighbouring_float32_confidences_are_not_ties() -> None:
    above = float(np.nextafter(np.float32(0.5), np.float32(1)))
    assert top_k([table([("a", 0, 0.5), ("b", 0, above)])], 1)["image_id"].to_pylist() == ["b"]


def test_starved_class_has_no_rows_and_counts_zero() -> None:
    selection = top_k([table([("a", 0, 0.9), ("b", 2, 0.5), ("c", 2, 0.5)])], 16)
    assert selection["pseudo_label"].to_pylist() == [0, 2, 2]
    assert samples_per_class(selection, 4) == [1, 0, 2, 0]


def test_top_k_of_nothing_is_an_empty_selection() -> None:
    for parts in ([], [table([])], [table([]), table([])]):
        selection = top_k(parts, 3)
        assert selection.schema == schema.SELECTION
        assert selection.num_rows == 0


def random_probabilities(rng: np.random.Generator, n: int, c: int) -> npt.NDArray[np.float32]:
    return rng.dirichlet([0.3] * c, n).astype(np.float32)


@pytest.mark.parametrize("seed", range(10))
def test_fuse_joins_by_image_id_and_equals_naive_mean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, c, b = int(rng.integers(1, 50)), int(rng.integers(2, 9)), int(rng.integers(1, 9))
    ids = [f"{i}.jpg" for i in range(n)]
    of_id = [dict(zip(ids, random_probabilities(rng, n, c), strict=True)) for _ in range(b)]
    orders = [[ids[i] for i in rng.permutation(n)] for _ in range(b)]
    given = [np.stack([p[i] for i in order]) for p, order in zip(of_id, orders, strict=True)]
    fused_ids, fused = fuse(orders, given)
    assert fused_ids == orders[0]
    assert fused.dtype == np.float32
    for i, row in zip(fused_ids, fused, strict=True):
        for k in range(c):
            naive = sum(float(p[i][k]) for p in of_id) / b
            assert float(row[k]) == pytest.approx(naive, rel=1e-6)


def test_fuse_of_one_labeler_changes_nothing() -> None:
    p = random_probabilities(np.random.default_rng(0), 20, 5)
    ids, fused = fuse([[str(i) for i in range(20)]], [p])
    assert ids == [str(i) for i in range(20)]
    np.testing.assert_array_equal(fused, p)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["a", "b"], ["a", "c"]),  # another image
        (["a", "b"], ["a"]),  # one is missing
        (["a"], ["a", "b"]),  # one too many
        (["a", "b"], ["a", "a"]),  # repeated in the second
        (["a", "a"], ["a", "b"]),  # repeated in the first
        (["a", "a"], ["a", "a"]),
        (["a", "b"], ["a", "b", "b"]),
    ],
)
def test_fuse_refuses_differing_or_repeated_ids(first: list[str], second: list[str]) -> None:
    p = [np.full((len(ids), 2), 0.5, np.float32) for ids in (first, second)]
    with pytest.raises(ValueError, match=r"[Ii]mage"):
        fuse([first, second], p)


def test_assign_gives_ties_to_the_lowest_class() -> None:
    p = np.array([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0], [1 / 3] * 3, [0.1, 0.2, 0.7]], np.float32)
    label, confidence = assign(p)
    assert label.tolist() == [1, 0, 0, 2]
    np.testing.assert_array_equal(confidence, p[range(4), label])
    assert [str(label.dtype), str(confidence.dtype)] == ["int32", "float32"]
