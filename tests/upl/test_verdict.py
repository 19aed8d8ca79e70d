"""Verdicts of referees against plain loops, and against the truth that they cannot see."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from upl_ray.upl.verdict import Votes, count_votes, verdict

Labels = npt.NDArray[np.int64]


def random_case(seed: int, n: int = 80, c: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of a referee and two sets of labels, of which about a half agree."""
    rng = np.random.default_rng(seed)
    old = rng.integers(0, c, n)
    new = np.where(rng.random(n) < 0.5, old, rng.integers(0, c, n))
    referee = torch.from_numpy(rng.dirichlet([0.5] * c, n)).float()
    return referee, torch.from_numpy(old), torch.from_numpy(new)


def naive_votes(referee: Tensor, old: Tensor, new: Tensor) -> Votes:
    images = changed = says_new = says_old = 0
    gain = 0.0
    for r, a, b in zip(referee.tolist(), old.tolist(), new.tolist(), strict=True):
        images += 1
        if a == b:
            continue
        changed += 1
        gain += r[b] - r[a]
        says_new += r.index(max(r)) == b
        says_old += r.index(max(r)) == a
    return Votes(images, changed, gain, says_new, says_old)


def assert_same(a: Votes, b: Votes) -> None:
    assert (a.images, a.changed, a.new, a.old) == (b.images, b.changed, b.new, b.old)
    assert a.gain == pytest.approx(b.gain, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_votes_equal_a_plain_loop(seed: int) -> None:
    case = random_case(seed)
    naive = naive_votes(*case)
    assert 0 < naive.new + naive.old < naive.changed < naive.images
    assert_same(count_votes(*case), naive)


def test_labels_of_any_integer_type_and_half_precision_do() -> None:
    referee, old, new = random_case(0)
    assert_same(count_votes(referee, old.to(torch.int32), new.to(torch.int16)), count_votes(referee, old, new))
    assert count_votes(referee.half(), old, new).gain == pytest.approx(count_votes(referee, old, new).gain, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_votes_add_over_any_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    cuts = sorted(rng.integers(0, 81, 4).tolist())
    order = torch.from_numpy(rng.permutation(80))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 80], strict=True)]
    assert_same(sum((count_votes(*(x[rows] for x in case)) for rows in parts), start=Votes()), count_votes(*case))


def test_votes_survive_json() -> None:
    votes = count_votes(*random_case(1))
    assert Votes.from_json(json.loads(json.dumps(votes.to_json()))) == votes


def test_a_verdict_in_numbers() -> None:
    votes = {"a": Votes(200, 50, 12.0, 30, 10), "b": Votes(100, 20, -1.0, 4, 6), "away": Votes()}
    a, b = (12 / 200, math.sqrt(41 - 20**2 / 52) / 200), (-1 / 100, math.sqrt(11 - 2**2 / 22) / 100)
    says = verdict(votes)
    assert says["gain"] == pytest.approx((a[0] + b[0]) / 2)
    assert says["error"] == pytest.approx((a[1] + b[1]) / 2)
    assert says["changed"] == pytest.approx((50 / 200 + 20 / 100) / 2)
    for name, (gain, error) in (("a", a), ("b", b)):
        assert says["referees"][name] == pytest.approx({"gain": gain, "error": error})
    assert says["referees"]["away"] == {"gain": None, "error": None}
    assert says["answer"] == "cannot tell"
    assert json.loads(json.dumps(says)) == says


@pytest.mark.parametrize(
    ("gain", "answer"), [(8.0, "better"), (7.9, "cannot tell"), (-7.9, "cannot tell"), (-8.0, "worse")]
)
def test_a_gain_counts_beyond_two_errors(gain: float, answer: str) -> None:
    assert verdict({"a": Votes(128, 40, gain, 8, 7)})["answer"] == answer  # its error is just below 4 / 128


def test_one_image_is_not_certain_however_its_only_vote_falls() -> None:
    assert verdict({"a": Votes(100, 1, 1.0, 1, 0)})["answer"] == "cannot tell"
    assert verdict({"a": Votes(100, 20, 19.0, 20, 0)})["answer"] == "better"


@pytest.mark.parametrize("votes", [{}, {"a": Votes()}])
def test_without_a_referee_or_an_image_nothing_is_told(votes: dict[str, Votes]) -> None:
    says = verdict(votes)
    assert [says[k] for k in ("answer", "gain", "error", "changed")] == ["cannot tell", None, None, None]


def test_without_a_change_nothing_is_told() -> None:
    referee, old, _ = random_case(2)
    votes = count_votes(referee, old, old)
    assert votes == Votes(images=80)
    says = verdict({"a": votes})
    assert [says[k] for k in ("answer", "gain", "error", "changed")] == ["cannot tell", 0, 0, 0]
    assert count_votes(referee[:0], old[:0], old[:0]) == Votes()


# A world whose truth is known: labels that are right with some probability, and else any other class.

N, C = 2000, 10


def labels_of(true: Labels, accuracy: float, rng: np.random.Generator) -> Labels:
    other = (true + rng.integers(1, C, len(true))) % C
    return np.where(rng.random(len(true)) < accuracy, true, other)


def referee_of(true: Labels, accuracy: float, rng: np.random.Generator, confidence: float) -> Tensor:
    """Its label has this probability, and all other classes the rest."""
    rest = (1 - confidence) / (C - 1)
    return torch.from_numpy(np.where(np.eye(C)[labels_of(true, accuracy, rng)] == 1, confidence, rest))


@pytest.mark.parametrize(
    ("before", "after", "answer"), [(0.7, 0.8, "better"), (0.8, 0.7, "worse"), (0.6, 0.7, "better")]
)
def test_independent_referees_see_the_sign_of_the_gain(before: float, after: float, answer: str) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        true = rng.integers(0, C, N)
        old, new = (torch.from_numpy(labels_of(true, a, rng)) for a in (before, after))
        weak, strong = (referee_of(true, a, rng, 0.8) for a in (0.6, 0.75))
        votes = {"weak": count_votes(weak, old, new), "strong": count_votes(strong, old, new)}
        assert verdict(votes)["answer"] == answer


def test_labels_that_are_as_good_are_rarely_called_better_or_worse() -> None:
    answers = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        true = rng.integers(0, C, N)
        old, new = (torch.from_numpy(labels_of(true, 0.7, rng)) for _ in range(2))
        votes = {name: count_votes(referee_of(true, 0.65, rng, 1.0), old, new) for name in "ab"}
        answers.append(verdict(votes)["answer"])
    assert answers.count("cannot tell") >= 0.93 * 200


def test_the_error_is_that_of_a_referee_that_says_one_class() -> None:
    """Drawn again and again, its gain lies within two errors of its expectation in at least 95 of 100 draws."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, C, N)
    old, new = (torch.from_numpy(labels_of(true, a, rng)) for a in (0.6, 0.8))
    accuracy = 0.7
    edge = accuracy - (1 - accuracy) / (C - 1)  # of the true class over any other
    expected = edge * float(((new.numpy() == true).astype(int) - (old.numpy() == true)).mean())
    says = [verdict({"a": count_votes(referee_of(true, accuracy, rng, 1.0), old, new)}) for _ in range(300)]
    off = np.array([(s["gain"] - expected) / s["error"] for s in says])
    assert np.mean(np.abs(off) < 2) >= 0.95
    assert 0.6 < off.std() < 1.1
    assert abs(off.mean()) < 0.2
