"""The training recipe against its definition, and the independence of ensemble members."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from upl_ray.config.settings import Train
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner, epoch_batches, initial_ctx, learning_rate, view_orders

NAMES = ("cat", "golden retriever", "x", "traffic light", "sea")
LOGIT_SCALE = 20.0  # steep enough for large gradients, flat enough that no softmax saturates


def train(**fields: object) -> Train:
    """A short recipe with a learning rate at which a small model's contexts move."""
    small = {"n_ctx": 4, "members": 3, "epochs": 5, "batch_size": 8, "lr": 0.02}
    return Train(**{**small, **fields})


@pytest.fixture(scope="module")
def encoder(small_clip: ClipModel) -> PromptEncoder:
    return PromptEncoder(small_clip, NAMES, n_ctx=4)


@pytest.fixture(scope="module")
def data(small_clip: ClipModel) -> tuple[Tensor, Tensor]:
    """View features [n, V, D] in half precision, as they are stored, and labels of all classes."""
    rng = torch.Generator().manual_seed(3)
    features = torch.nn.functional.normalize(torch.randn(21, 3, 24, generator=rng), dim=-1).half()
    return features, torch.arange(21) % len(NAMES)


def learner(
    encoder: PromptEncoder, data: tuple[Tensor, Tensor], members: Sequence[int], recipe: Train | None = None
) -> PromptLearner:
    return PromptLearner(encoder, *data, members, recipe or train(), LOGIT_SCALE)


def test_learning_rates_are_the_published_ones() -> None:
    rates = [learning_rate(e, Train()) for e in range(50)]
    listed = {0: 1.000e-05, 1: 2.000e-03, 2: 1.998e-03, 3: 1.992e-03, 49: 7.885e-06}
    assert {e: float(f"{rates[e]:.3e}") for e in listed} == listed


@pytest.mark.parametrize("epochs", [1, 2, 10, 50, 200])
def test_learning_rates_equal_torch_cosine_that_starts_after_epoch_0(epochs: int) -> None:
    recipe = Train(epochs=epochs, lr=0.01, warmup_lr=1e-4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    expected: list[Any] = [recipe.warmup_lr]
    for _ in range(1, epochs):
        expected.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    assert [learning_rate(e, recipe) for e in range(epochs)] == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("n", "steps", "size"), [(160, 5, 32), (33, 1, 32), (32, 1, 32), (31, 1, 31), (5, 1, 5)])
def test_batches_hold_every_image_at_most_once_and_drop_the_incomplete_one(n: int, steps: int, size: int) -> None:
    seen: set[int] = set()
    for epoch in range(40):
        batches = epoch_batches(n, Train(), member=1, epoch=epoch)
        assert batches.shape == (steps, size)
        used = batches.flatten().tolist()
        assert len(set(used)) == len(used)
        assert set(used) <= set(range(n))
        seen |= set(used)
    assert seen == set(range(n))  # another image is dropped each time


def test_batches_are_shuffled_differently_for_each_member_epoch_and_seed() -> None:
    keys = [(s, m, e) for s in (0, 1) for m in (0, 1, 2) for e in (0, 1, 2)]
    drawn = [tuple(epoch_batches(64, Train(seed=s), m, e).flatten().tolist()) for s, m, e in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [tuple(epoch_batches(64, Train(seed=s), m, e).flatten().tolist()) for s, m, e in keys]


def test_view_orders_are_permutations_that_differ_between_images_members_and_seeds() -> None:
    orders = [view_orders(9, 20, Train(seed=s), m) for s in (0, 1) for m in (0, 1, 2)]
    rows = [tuple(row) for order in orders for row in order.tolist()]
    assert all(sorted(row) == list(range(20)) for row in rows)
    assert len(set(rows)) == len(rows)


def test_initial_contexts_are_normal_with_the_configured_deviation() -> None:
    draws = np.stack([initial_ctx(Train(), m, (16, 512)) for m in range(16)])
    assert draws.shape == (16, 16, 512)
    assert draws.std() == pytest.approx(0.02, rel=0.02)  # the standard error of 131,072 draws is 0.2 %
    assert abs(draws.mean()) < 4 * 0.02 / math.sqrt(draws.size)
    correlation = np.corrcoef(draws.reshape(16, -1)) - np.eye(16)
    assert np.abs(correlation).max() < 0.06  # 5 standard errors of 8,192 pairs


def test_one_epoch_equals_hand_written_sgd(encoder: PromptEncoder, data: tuple[Tensor, Tensor]) -> None:
    recipe = train(weight_decay=0.03)
    features, labels = data
    ours = learner(encoder, data, [2], recipe)
    ctx = torch.from_numpy(initial_ctx(recipe, 2, encoder.ctx_shape))
    velocity = torch.zeros_like(ctx)
    for epoch in range(3):
        losses: list[float] = []
        for batch in epoch_batches(len(labels), recipe, 2, epoch):
            view = view_orders(len(labels), 3, recipe, 2)[:, epoch % 3]
            ctx = ctx.detach().requires_grad_()
            text = encoder(ctx[None])[0]
            loss = torch.zeros(())
            for i in batch.tolist():
                logits = LOGIT_SCALE * (text @ features[i, int(view[i])].float())
                loss = loss + (torch.logsumexp(logits, 0) - logits[labels[i]]) / len(batch)
            (gradient,) = torch.autograd.grad(loss, ctx)
            velocity = recipe.momentum * velocity + gradient + recipe.weight_decay * ctx.detach()
            ctx = ctx.detach() - learning_rate(epoch, recipe) * velocity
            losses.append(float(loss.item()))
        assert ours.train_epoch(epoch) == pytest.approx([np.mean(losses)], rel=1e-4)
    torch.testing.assert_close(ours.ctx.detach()[0], ctx, rtol=1e-4, atol=1e-6)


def test_small_steps_on_all_images_lower_every_members_loss_each_time(
    encoder: PromptEncoder, data: tuple[Tensor, Tensor]
) -> None:
    recipe = train(epochs=15, batch_size=21, lr=2e-4, warmup_lr=2e-4, momentum=0.0, weight_decay=0.0)
    ours = learner(encoder, (data[0][:, :1], data[1]), [0, 1, 2], recipe)
    history = np.array([ours.train_epoch(e) for e in range(15)])  # [epochs, members]
    assert (np.diff(history, axis=0) < 0).all()


@pytest.mark.parametrize("groups", [[[0], [1], [2], [3]], [[3, 0], [1, 2]], [[2, 1, 0], [3]]])
def test_a_member_does_not_depend_on_its_group(
    encoder: PromptEncoder, data: tuple[Tensor, Tensor], groups: list[list[int]]
) -> None:
    together = learner(encoder, data, [0, 1, 2, 3])
    losses = np.array([together.train_epoch(e) for e in range(5)])  # [epochs, members]
    for members in groups:
        apart = learner(encoder, data, members)
        for epoch in range(5):
            assert apart.train_epoch(epoch) == pytest.approx(losses[epoch, members].tolist(), rel=1e-5)
        # Not bitwise: matrix products of another shape round differently, and five epochs carry it on.
        torch.testing.assert_close(apart.ctx.detach(), together.ctx.detach()[members], rtol=0, atol=1e-5)
    start = torch.from_numpy(initial_ctx(train(), 0, encoder.ctx_shape))
    assert (together.ctx[0] - start).abs().max() > 0.1  # they have learned,
    assert (together.ctx[0] - together.ctx[1]).abs().max() > 0.1  # each something else


def test_the_same_group_trains_bitwise_alike(encoder: PromptEncoder, data: tuple[Tensor, Tensor]) -> None:
    runs = [learner(encoder, data, [0, 2]) for _ in range(2)]
    for epoch in range(3):
        assert runs[0].train_epoch(epoch) == runs[1].train_epoch(epoch)
    assert torch.equal(runs[0].ctx, runs[1].ctx)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resumed_training_equals_uninterrupted(encoder: PromptEncoder, data: tuple[Tensor, Tensor], stop: int) -> None:
    members = [4, 1]
    whole, first = learner(encoder, data, members), learner(encoder, data, members)
    expected = [whole.train_epoch(e) for e in range(5)]
    for epoch in range(stop):
        first.train_epoch(epoch)
    states = [first.state(m) for m in members]
    resumed = learner(encoder, data, members)
    resumed.load_states(states)
    assert [resumed.train_epoch(e) for e in range(stop, 5)] == expected[stop:]
    assert torch.equal(resumed.ctx, whole.ctx)
    for member in members:
        assert torch.equal(resumed.state(member)["momentum"], whole.state(member)["momentum"])


def test_states_are_copies(encoder: PromptEncoder, data: tuple[Tensor, Tensor]) -> None:
    ours = learner(encoder, data, [0])
    ours.train_epoch(1)
    state = ours.state(0)
    kept = {k: v.clone() for k, v in state.items()}
    ours.train_epoch(2)
    assert all(torch.equal(state[k], kept[k]) for k in kept)
    assert not torch.equal(ours.state(0)["ctx"], kept["ctx"])


def test_text_features_are_those_of_the_learned_contexts(encoder: PromptEncoder, data: tuple[Tensor, Tensor]) -> None:
    ours = learner(encoder, data, [0, 5])
    ours.train_epoch(1)
    features = ours.text_features()
    assert features.shape == (2, len(NAMES), 24)
    torch.testing.assert_close(features, encoder(ours.ctx).detach(), rtol=1e-5, atol=1e-6)
