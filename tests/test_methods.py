"""Each compared method against its formula: naive loops, closed forms, other implementations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import resolve_folder, write_model
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from upl_ray.config import ConfigError, Train
from upl_ray.methods import clip_adapter, linear_probe, tip_adapter
from upl_ray.methods.few_shot import FewShot, Fitted, accuracy, draw, held_out
from upl_ray.methods.prompts import coop_recipe
from upl_ray.methods.templates import read_templates
from upl_ray.prompt_learner import epoch_batches, learning_rate, view_orders
from upl_ray.runs import fit
from upl_ray.zero_shot import average_templates, probabilities

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


# Templates


def test_a_template_ensemble_is_the_normalised_mean_of_each_template_s_features() -> None:
    features = normalize(torch.randn(5, C, D, generator=torch.Generator().manual_seed(1)), dim=-1)
    averaged = average_templates(features)
    for c in range(C):
        total = [sum(float(features[t, c, d]) for t in range(5)) / 5 for d in range(D)]
        length = math.sqrt(sum(x * x for x in total))
        assert averaged[c].tolist() == pytest.approx([x / length for x in total], abs=1e-6)
    torch.testing.assert_close(average_templates(features[:1]), features[0])


def test_it_equals_open_clip_s_zero_shot_classifier(small_clip: open_clip.CLIP) -> None:
    templates, names = ("a photo of a {}.", "art of {}", "{}"), ("cat", "red car")
    ours = average_templates(
        torch.stack([small_clip.encode_texts([t.replace("{}", n) for n in names]) for t in templates])
    )
    theirs = open_clip.build_zero_shot_classifier(
        small_clip.model, small_clip.tokenizer, names, [t.format for t in templates], device="cpu"
    )
    torch.testing.assert_close(ours, theirs.T, rtol=0, atol=1e-6)


def test_templates_are_imagenet_s_a_file_s_or_given(tmp_path: Path) -> None:
    spec = resolve_folder(write_model(tmp_path / "model", text={"context_length": 40}))
    names = ("cat", "dog")
    assert len(read_templates("imagenet", spec, names)) == 80
    assert "a bad photo of a {}." in read_templates("imagenet", spec, names)
    (tmp_path / "templates.txt").write_text("a {}.\n\nthe {}\n")
    assert read_templates(str(tmp_path / "templates.txt"), spec, names) == ("a {}.", "the {}")
    assert read_templates(("one {}",), spec, names) == ("one {}",)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_templates(str(tmp_path / "none.txt"), spec, names)
    with pytest.raises(ConfigError, match=r"compare.templates 'foo://x/y' cannot be read .*give a text file"):
        read_templates("foo://x/y", spec, names)
    with pytest.raises(ConfigError, match="exactly one"):
        read_templates(("a photo",), spec, names)
    with pytest.raises(ConfigError, match="does not fit"):
        read_templates(("a {} " + 50 * "long ",), spec, names)


# Samples


def test_draws_are_nested_balanced_and_never_unlabeled() -> None:
    labels = np.array([2, 0, -1, 0, 0, 2, 0, 1, -1, 0])
    for seed in range(5):
        most = draw(labels, 3, seed)
        assert [len(rows) for rows in most] == [3, 1, 2]  # all of a class that has fewer
        for c, rows in enumerate(most):
            assert set(labels[rows]) == {c}
            assert len(set(rows.tolist())) == len(rows)
            for k in (1, 2):
                assert draw(labels, k, seed)[c].tolist() == rows[:k].tolist()
    pairs = {tuple(draw(labels, 2, seed, v)[0].tolist()) for seed in range(20) for v in (False, True)}
    assert len(pairs) > 10  # of the 20 ordered pairs of five images


def test_a_fifth_of_ids_is_held_out_whatever_else_there_is() -> None:
    share = np.mean([held_out(f"folder/{i}.jpg") for i in range(20_000)])
    assert share == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / 20_000))


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
    assert linear_probe.search(lambda step: 1.0) == 96
    assert linear_probe.search(lambda step: float(step <= 50)) == 50
    fitted = linear_probe.linear_probe(data)
    expected = linear_probe.probe_logits(linear_probe.fit_probe(data, fitted.chosen["C"]), test_images, C)
    torch.testing.assert_close(fitted.logits(test_images), torch.from_numpy(expected))


def test_c_goes_from_1e_6_to_1e6_by_eighths_of_a_decade() -> None:
    assert [linear_probe.c_of(s) for s in (0, 8, 48, 96)] == pytest.approx([1e-6, 1e-5, 1, 1e6])


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
    fitted = clip_adapter.clip_adapter(data, 1, recipe)
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


def test_its_search_is_the_authors_grid_on_validation(data: FewShot, test_images: Tensor) -> None:
    assert (tip_adapter.ALPHAS[0], tip_adapter.BETAS[0]) == (0.1, 0.1)
    assert (tip_adapter.ALPHAS[-1], tip_adapter.BETAS[-1]) == pytest.approx((2.855, 6.9655))
    assert (len(tip_adapter.ALPHAS), len(tip_adapter.BETAS)) == (20, 200)
    fitted = tip_adapter.tip_adapter(data)
    keys = tip_adapter.cache_keys(data.views)
    found = accuracy(fitted.logits(data.validation_features), data.validation_labels)
    for alpha in tip_adapter.ALPHAS[::3]:
        for beta in tip_adapter.BETAS[::20]:
            logits = tip_adapter.tip_logits(data.validation_features, keys, data, alpha, beta)
            assert accuracy(logits, data.validation_labels) <= found
    expected = tip_adapter.tip_logits(test_images, keys, data, **fitted.chosen)
    torch.testing.assert_close(fitted.logits(test_images), expected)


def test_learned_keys_equal_a_linear_layer_s_trained_by_adamw(data: FewShot) -> None:
    """The authors' form: the keys as the weights of a linear layer, one-hot values, AdamW and a cosine by steps."""
    layer = torch.nn.Linear(D, 20, bias=False)
    layer.weight.data = tip_adapter.cache_keys(data.views).clone()
    values = torch.nn.functional.one_hot(data.labels, C).float()
    batches = list(tip_adapter._batches(20, 12, seed=5))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.001, eps=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for rows, views in batches:
        x = data.views[rows, views]
        logits = 1.0 * (-(5.5 - 5.5 * layer(x))).exp() @ values + SCALE * x @ data.text_features.T
        optimizer.zero_grad()
        cross_entropy(logits, data.labels[rows]).backward()
        optimizer.step()
        cosine.step()
    ours = tip_adapter.learn_keys(data, seed=5)
    torch.testing.assert_close(ours, layer.weight.detach(), rtol=1e-4, atol=1e-6)
    assert (ours - tip_adapter.cache_keys(data.views)).abs().max() > 0.005
    assert len(batches) == 20
    assert all(sorted(rows.tolist()) == list(range(20)) for rows, _ in batches)


# All of them


@pytest.mark.parametrize("name", ["linear-probe", "clip-adapter", "tip-adapter", "tip-adapter-f"])
def test_a_method_repeats_itself_and_learns_from_its_samples(name: str, data: FewShot) -> None:
    def run() -> Fitted:
        return fit(name, data, 3, coop_recipe(8, "", 3))

    first, again = run(), run()
    assert torch.equal(first.logits(data.features), again.logits(data.features))
    assert first.chosen == again.chosen != {}
    zero_shot = accuracy(data.features @ data.text_features.T, data.labels)
    assert accuracy(first.logits(data.features), data.labels) > zero_shot


@pytest.mark.parametrize(
    ("shots", "dataset", "epochs"),
    [(1, "dtd", 50), (2, "", 100), (4, "", 100), (5, "", 100), (8, "", 200), (16, "", 200)],
)
def test_coop_s_recipe(shots: int, dataset: str, epochs: int) -> None:
    recipe = coop_recipe(shots, dataset, seed=4)
    assert (recipe.epochs, recipe.members, recipe.seed, recipe.n_ctx) == (epochs, 1, 4, 16)
    assert (recipe.lr, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (0.002, 32, 0.9, 5e-4)
    assert coop_recipe(shots, "imagenet", 4).epochs == 50
