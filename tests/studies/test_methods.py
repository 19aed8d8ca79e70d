"""Each compared method against its formula: naive loops, closed forms, other implementations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from upl_ray.config.settings import DatasetName, Train
from upl_ray.studies.methods import clip_adapter, linear_probe, tip_adapter
from upl_ray.studies.methods.few_shot import FewShot, accuracy
from upl_ray.studies.methods.prompts import coop_recipe
from upl_ray.studies.runs import MOST_VIEWS, fit
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.prompt_learner import epoch_batches, learning_rate, view_orders
from upl_ray.upl.zero_shot import average_templates, probabilities

C, D, SCALE = 4, 12, 20.0


@pytest.fixture(scope="module")
def data() -> FewShot:
    """Five images a class around class means that the text features only resemble, and views around each image."""
    rng = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    means = noise(C, D)

    def images(per_class: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(C).repeat(per_class)
        return normalize(means[labels] + 0.8 * noise(len(labels), D), dim=-1), labels

    features, labels = images(5)
    views = normalize(features[:, None] + 0.1 * noise(len(labels), 12, D), dim=-1)
    text = normalize(means + 1.5 * noise(C, D), dim=-1)
    return FewShot(features, views, labels, *images(10), text, SCALE)


@pytest.fixture(scope="module")
def test_images(data: FewShot) -> Tensor:
    return normalize(torch.randn(50, D, generator=torch.Generator().manual_seed(9)), dim=-1)


# Template ensembles and CoOp


def test_a_template_ensemble_is_the_normalised_mean_of_each_template_s_features() -> None:
    features = normalize(torch.randn(5, C, D, generator=torch.Generator().manual_seed(1)), dim=-1)
    averaged = average_templates(features)
    for c in range(C):
        mean = [sum(float(features[t, c, d]) for t in range(5)) / 5 for d in range(D)]
        length = math.sqrt(sum(x * x for x in mean))
        assert averaged[c].tolist() == pytest.approx([x / length for x in mean], abs=1e-6)
    torch.testing.assert_close(average_templates(features[:1]), features[0])


def test_a_template_ensemble_equals_open_clip_s_zero_shot_classifier(small_clip: ClipModel) -> None:
    templates, names = ("a photo of a {}.", "art of {}", "{}"), ("cat", "red car")
    ours = average_templates(
        torch.stack([small_clip.encode_texts([t.replace("{}", n) for n in names]) for t in templates])
    )
    theirs = open_clip.build_zero_shot_classifier(
        small_clip.model, small_clip.tokenizer, names, [t.format for t in templates], device="cpu"
    )
    torch.testing.assert_close(ours, theirs.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shots", "dataset", "epochs"),
    [(1, "dtd", 50), (2, "", 100), (4, "", 100), (5, "", 100), (8, "", 200), (16, "", 200), (16, "imagenet", 50)],
)
def test_coop_s_recipe(shots: int, dataset: str, epochs: int) -> None:
    recipe = coop_recipe(shots, dataset, seed=4)
    assert (recipe.epochs, recipe.members, recipe.seed, recipe.n_ctx) == (epochs, 1, 4, 16)
    assert (recipe.lr, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (0.002, 32, 0.9, 5e-4)


# Linear probe


@pytest.mark.parametrize("c", [0.3, 3.0])
def test_the_probe_minimises_the_stated_objective(c: float, data: FewShot, test_images: Tensor) -> None:
    ours = torch.from_numpy(linear_probe.probe_logits(linear_probe.fit_probe(data, c), test_images, C)).softmax(1)
    weights = torch.zeros(D, C, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(C, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        fit_loss = cross_entropy(data.features.double() @ weights + bias, data.labels, reduction="sum")
        loss = 0.5 * weights.square().sum() + c * fit_loss
        loss.backward()
        return loss

    optimizer.step(objective)
    expected = (test_images.double() @ weights + bias).softmax(1).detach()
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-3)  # scikit-learn stops at a gradient of 1e-4
    assert (expected.max(1).values > 0.3).any()  # it is not uniform


@pytest.mark.parametrize("peak", [0, 1, 7, 15, 16, 17, 40, 63, 90, 96])
def test_the_search_finds_a_single_peak_with_few_fits(peak: int) -> None:
    tried = []

    def score(step: int) -> float:
        tried.append(step)
        return -abs(step - peak)

    assert linear_probe.search(score) == peak
    assert len(tried) == len(set(tried)) <= 7 + 2 * 4


def test_among_equal_cs_the_largest_is_taken_and_the_fit_is_that_of_c(data: FewShot, test_images: Tensor) -> None:
    assert [linear_probe.c_of(s) for s in (0, 8, 48, 96)] == pytest.approx([1e-6, 1e-5, 1, 1e6])
    assert linear_probe.search(lambda step: 1.0) == 96
    assert linear_probe.search(lambda step: float(step <= 50)) == 50
    fitted = linear_probe.linear_probe(data)
    expected = linear_probe.probe_logits(linear_probe.fit_probe(data, fitted.chosen["C"]), test_images, C)
    torch.testing.assert_close(fitted.logits(test_images), torch.from_numpy(expected))


def test_classes_without_a_sample_are_never_predicted(data: FewShot, test_images: Tensor) -> None:
    for kept in ([0, 2], [0, 1, 3]):
        rows = torch.isin(data.labels, torch.tensor(kept))
        few = FewShot(**{**vars(data), "features": data.features[rows], "labels": data.labels[rows]})
        logits = linear_probe.linear_probe(few).logits(test_images)
        assert logits.shape == (50, C)
        assert set(logits.argmax(1).tolist()) <= set(kept)


# CLIP-Adapter


def test_the_adapter_is_the_published_network_and_does_not_mind_the_norm(test_images: Tensor) -> None:
    adapter = clip_adapter.Adapter(D, 0.2, seed=3).requires_grad_(False)
    network = torch.nn.Sequential(
        torch.nn.Linear(D, D // 4, bias=False), torch.nn.ReLU(), torch.nn.Linear(D // 4, D, bias=False), torch.nn.ReLU()
    )
    network[0].weight.data, network[2].weight.data = adapter.down.T, adapter.up.T
    raw = 7.5 * test_images  # as the image encoder gives them
    expected = 0.2 * network(raw) + 0.8 * raw
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(adapter(test_images), expected.detach(), rtol=1e-5, atol=1e-6)


def test_its_training_equals_hand_written_sgd(data: FewShot) -> None:
    recipe = Train(epochs=4, batch_size=8, lr=0.05, weight_decay=0.01, seed=2)
    ours = clip_adapter.fit_adapter(data, 0.6, recipe)
    start = clip_adapter.Adapter(D, 0.6, seed=2)
    weights = [start.down.detach().clone(), start.up.detach().clone()]
    velocity = [torch.zeros_like(w) for w in weights]
    for epoch in range(4):
        for batch in epoch_batches(20, recipe, 0, epoch):
            down, up = (w.requires_grad_() for w in weights)
            loss = torch.zeros(())
            for i in batch.tolist():
                f = data.views[i, view_orders(20, 12, recipe, 0)[i, epoch]]
                adapted = 0.6 * torch.relu(torch.relu(f @ down) @ up) + 0.4 * f
                logits = SCALE * data.text_features @ (adapted / adapted.norm())
                loss = loss + (torch.logsumexp(logits, 0) - logits[data.labels[i]]) / len(batch)
            gradients = torch.autograd.grad(loss, [down, up])
            velocity = [0.9 * v + g + 0.01 * w.detach() for v, g, w in zip(velocity, gradients, weights, strict=True)]
            weights = [w.detach() - learning_rate(epoch, recipe) * v for w, v in zip(weights, velocity, strict=True)]
    torch.testing.assert_close(ours.down, weights[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.up, weights[1], rtol=1e-4, atol=1e-5)
    assert (ours.down - start.down).abs().max() > 0.05  # it has learned


def test_its_ratio_is_the_best_on_validation(data: FewShot, test_images: Tensor) -> None:
    recipe = coop_recipe(1, "", seed=1)
    fitted = clip_adapter.clip_adapter(data, recipe)
    scores = {}
    for ratio in clip_adapter.RATIOS:
        adapter = clip_adapter.fit_adapter(data, ratio, recipe)
        scores[ratio] = accuracy(adapter(data.validation_features) @ data.text_features.T, data.validation_labels)
        if ratio == fitted.chosen["alpha"]:
            expected = SCALE * adapter(test_images) @ data.text_features.T
    assert fitted.chosen["alpha"] == max(scores, key=lambda r: scores[r])
    torch.testing.assert_close(fitted.logits(test_images), expected)


# Tip-Adapter


def naive_tip(x: Tensor, keys: Tensor, data: FewShot, alpha: float, beta: float) -> Tensor:
    """Equation 6, image by image and key by key."""
    rows = []
    for f in x:
        logits = [SCALE * float(f @ w) for w in data.text_features]
        for key, label in zip(keys, data.labels.tolist(), strict=True):
            logits[label] += alpha * math.exp(-beta * (1 - float(f @ key)))
        rows.append(logits)
    return torch.tensor(rows)


def test_keys_are_normalised_means_of_ten_views(data: FewShot) -> None:
    keys = tip_adapter.cache_keys(data.views)
    mean = sum(data.views[:, v] for v in range(10)) / 10
    torch.testing.assert_close(keys, mean / mean.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (1.0, 5.5), (2.5, 0.4)])
def test_its_logits_are_the_formula_s(data: FewShot, test_images: Tensor, alpha: float, beta: float) -> None:
    keys = tip_adapter.cache_keys(data.views)
    ours = tip_adapter.tip_logits(test_images, keys, data, alpha, beta)
    torch.testing.assert_close(ours, naive_tip(test_images, keys, data, alpha, beta), rtol=1e-4, atol=1e-4)
    if alpha == 0:
        torch.testing.assert_close(ours.softmax(1), probabilities(test_images, data.text_features, SCALE))


# search_scale (beta, alpha), init_beta, init_alpha and train_epoch of the authors' configs/*.yaml
AUTHORS = {
    "imagenet": ((7, 3), 1, 1.17, 20),
    "caltech101": ((12, 5), 1, 3, 20),
    "dtd": ((13, 13), 1, 2, 20),
    "eurosat": ((12, 10), 1, 2, 100),
    "fgvc_aircraft": ((30, 30), 1, 5, 20),
    "food101": ((10, 10), 1, 1.17, 20),
    "oxford_flowers": ((50, 50), 1, 10, 20),
    "oxford_pets": ((7, 3), 1, 1.17, 20),
    "stanford_cars": ((20, 10), 1, 3, 20),
    "sun397": ((12, 10), 1, 1.17, 20),
    "ucf101": ((7, 3), 1, 3, 20),
}


def test_every_data_set_has_its_own_grid_of_the_authors_code() -> None:
    """Their grids: `i * (scale - 0.1) / step + 0.1`, 200 steps of beta and 20 of alpha."""
    assert set(AUTHORS) == set(get_args(DatasetName)) - {""}
    for dataset, ((beta, alpha), init_beta, init_alpha, epochs) in AUTHORS.items():
        search = tip_adapter.search_of(dataset)
        assert search.betas() == pytest.approx([i * (beta - 0.1) / 200 + 0.1 for i in range(200)])
        assert search.alphas() == pytest.approx([i * (alpha - 0.1) / 20 + 0.1 for i in range(20)])
        assert (search.beta, search.alpha, search.epochs) == (init_beta, init_alpha, epochs), dataset


def test_other_images_are_searched_as_wide_as_any_data_set_and_as_finely_where_values_are_small() -> None:
    wide = tip_adapter.search_of("")
    assert (wide.alpha, wide.beta, wide.epochs) == (1.0, 5.5, 20)
    for values, count in ((wide.alphas(), 20), (wide.betas(), 200)):
        ratios = np.array(values[1:]) / np.array(values[:-1])
        assert (len(values), values[0]) == (count, 0.1)
        assert ratios == pytest.approx(ratios[0])
        assert values[-1] * ratios[0] == pytest.approx(50)
        assert sum(v < 3 for v in values) > count / 2


@pytest.mark.parametrize("dataset", ["", "imagenet", "oxford_flowers"])
def test_its_search_is_the_whole_grid_on_validation(data: FewShot, test_images: Tensor, dataset: str) -> None:
    search = tip_adapter.search_of(dataset)
    fitted = tip_adapter.tip_adapter(data, search)
    keys = tip_adapter.cache_keys(data.views)
    found = accuracy(fitted.logits(data.validation_features), data.validation_labels)
    for alpha in search.alphas()[::3]:
        for beta in search.betas()[::20]:
            logits = tip_adapter.tip_logits(data.validation_features, keys, data, alpha, beta)
            assert accuracy(logits, data.validation_labels) <= found
    assert fitted.chosen["alpha"] in search.alphas()
    assert fitted.chosen["beta"] in search.betas()
    expected = tip_adapter.tip_logits(test_images, keys, data, **fitted.chosen)
    torch.testing.assert_close(fitted.logits(test_images), expected)


@pytest.mark.parametrize(("dataset", "epochs", "a", "b"), [("", 20, 1.0, 5.5), ("eurosat", 100, 2.0, 1.0)])
def test_learned_keys_equal_a_linear_layer_s_trained_by_adamw(
    data: FewShot, dataset: str, epochs: int, a: float, b: float
) -> None:
    """The authors' form: the keys as the weights of a linear layer, one-hot values, AdamW and a cosine by steps."""
    layer = torch.nn.Linear(D, 20, bias=False)
    layer.weight.data = tip_adapter.cache_keys(data.views).clone()
    values = torch.nn.functional.one_hot(data.labels, C).float()
    batches = list(tip_adapter._batches(20, 12, 5, epochs))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.001, eps=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for rows, views in batches:
        x = data.views[rows, views]
        logits = a * (-(b - b * layer(x))).exp() @ values + SCALE * x @ data.text_features.T
        optimizer.zero_grad()
        cross_entropy(logits, data.labels[rows]).backward()
        optimizer.step()
        cosine.step()
    ours = tip_adapter.learn_keys(data, 5, tip_adapter.search_of(dataset))
    torch.testing.assert_close(ours, layer.weight.detach(), rtol=1e-4, atol=1e-6)
    assert (ours - tip_adapter.cache_keys(data.views)).abs().max() > 0.005
    assert len(batches) == epochs
    assert all(sorted(rows.tolist()) == list(range(20)) for rows, _ in batches)


# All of them


@pytest.mark.parametrize(
    ("method", "views"), [("linear-probe", 0), ("clip-adapter", 12), ("tip-adapter", 10), ("tip-adapter-f", 12)]
)
def test_a_method_learns_and_gives_bitwise_the_same_again_from_only_the_views_that_it_reads_in_half_precision(
    method: str, views: int, data: FewShot
) -> None:
    recipe, search, stored = coop_recipe(8, "", 3), tip_adapter.search_of(""), data.views.half()
    assert MOST_VIEWS.get(method, 12) == views
    first, again = (fit(method, replace(data, views=v), recipe, search) for v in (stored.float(), stored[:, :views]))
    assert torch.equal(first.logits(data.features), again.logits(data.features))
    assert first.chosen == again.chosen != {}
    zero_shot = accuracy(data.features @ data.text_features.T, data.labels)
    assert accuracy(first.logits(data.features), data.labels) > zero_shot
