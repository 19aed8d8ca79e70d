"""Scores against scikit-learn, and the ensemble's probabilities against naive loops."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from upl_ray import metrics
from upl_ray.sources import sub_folder
from upl_ray.zero_shot import ensemble_probabilities, fill_template, probabilities


def labels(seed: int, n: int = 200, c: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes of which a third is right; a fifth of the images has no label."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, c, n)
    predicted = np.where(rng.random(n) < 1 / 3, true, rng.integers(0, c - 1, n))  # class c - 1 is rarely predicted
    return predicted, np.where(rng.random(n) < 0.2, metrics.UNLABELED, true)


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_equals_scikit_learns(seed: int) -> None:
    predicted, true = labels(seed)
    known = true != metrics.UNLABELED
    assert metrics.accuracy(predicted, true) == pytest.approx(accuracy_score(true[known], predicted[known]))


def test_nothing_labeled_is_not_a_number() -> None:
    predicted, true = np.array([0, 1]), np.array([metrics.UNLABELED] * 2)
    assert math.isnan(metrics.accuracy(predicted, true))
    assert math.isnan(metrics.accuracy(predicted[:0], true[:0]))


def test_a_label_is_a_class_name_or_a_class_number() -> None:
    names = ("sea horse", "cat", "7", "dog")
    labels = ["cat", "sea_horse", "bird", None, "", "3", "7", "0", "4", "-1", "Cat"]
    assert metrics.true_labels(labels, names).tolist() == [1, 0, -1, -1, -1, 3, 2, 0, -1, -1, -1]


def test_folders_are_labels() -> None:
    ids = ["cat/1.jpg", "sea_horse/x/2.jpg", "bird/3.jpg", "dog.jpg", "x/cat/1.jpg"]
    assert [sub_folder(i) for i in ids] == ["cat", "sea_horse", "bird", None, "x"]


def features(seed: int, *shape: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_ensemble_probabilities_equal_a_naive_loop(average: str, scale: float) -> None:
    images, texts = features(0, 6, 10).half(), features(1, 3, 4, 10)
    ours = ensemble_probabilities(images, texts, scale, average)  # type: ignore[arg-type]
    for n in range(6):
        logits = [
            [scale * sum(float(a) * float(b) for a, b in zip(images[n], texts[s, c], strict=True)) for c in range(4)]
            for s in range(3)
        ]
        if average == "probabilities":
            each = [softmax(row) for row in logits]
            expected = [sum(p[c] for p in each) / 3 for c in range(4)]
        else:
            expected = softmax([sum(row[c] for row in logits) / 3 for c in range(4)])
        assert ours[n].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_averaged_logits_are_one_classifier_with_averaged_text_features() -> None:
    images, texts = features(2, 50, 16), features(3, 5, 8, 16)
    ours = ensemble_probabilities(images, texts, 30.0, "logits")
    torch.testing.assert_close(ours, probabilities(images, texts.mean(0), 30.0), rtol=1e-4, atol=1e-6)
    other = ensemble_probabilities(images, texts, 30.0, "probabilities")
    assert (ours - other).abs().max() > 0.01  # the two rules are two rules


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_one_member_is_its_own_ensemble(average: str) -> None:
    images, texts = features(4, 20, 16), features(5, 8, 16)
    ours = ensemble_probabilities(images, texts[None], 50.0, average)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, probabilities(images, texts, 50.0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.sum(1), torch.ones(20))


def test_a_template_is_filled_once_for_each_class() -> None:
    assert fill_template("a photo of a {}.", ("cat", "big dog", "{}")) == [
        "a photo of a cat.",
        "a photo of a big dog.",
        "a photo of a {}.",
    ]
