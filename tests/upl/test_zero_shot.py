"""Probabilities of single prompts and of ensembles against naive loops."""

import math

import pytest
import torch

from upl_ray.upl.zero_shot import average_members, fill_template, member_logits, probabilities


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
    ours = average_members(member_logits(images, texts, scale), average)  # type: ignore[arg-type]
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
    ours = average_members(member_logits(images, texts, 30.0), "logits")
    torch.testing.assert_close(ours, probabilities(images, texts.mean(0), 30.0), rtol=1e-4, atol=1e-6)
    other = average_members(member_logits(images, texts, 30.0), "probabilities")
    assert (ours - other).abs().max() > 0.01  # the two rules are two rules


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_one_member_is_its_own_ensemble(average: str) -> None:
    images, texts = features(4, 20, 16), features(5, 8, 16)
    ours = average_members(member_logits(images, texts[None], 50.0), average)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, probabilities(images, texts, 50.0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.sum(1), torch.ones(20))


def test_a_template_is_filled_once_for_each_class() -> None:
    assert fill_template("a photo of a {}.", ("cat", "big dog", "{}")) == [
        "a photo of a cat.",
        "a photo of a big dog.",
        "a photo of a {}.",
    ]
