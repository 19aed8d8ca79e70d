"""Members and classes processed in turn to save memory: same result, and an estimate that holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from upl_ray.config.settings import Train
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner, initial_ctx, plan_step

NAMES = ("cat", "sea horse", "a very long name of a bird", "dog", "hot air balloon", "ant", "bee")


@pytest.mark.parametrize(
    ("members", "member_bytes", "memory", "expected"),
    [
        (16, 10.0, None, (16, 1)),
        (16, 10.0, 160.0, (16, 1)),
        (16, 10.0, 159.0, (15, 1)),
        (16, 10.0, 10.0, (1, 1)),
        (16, 10.0, 9.9, (1, 2)),
        (1, 10.0, 1.0, (1, 10)),
    ],
)
def test_members_are_taken_in_turn_before_classes_are(
    members: int, member_bytes: float, memory: float | None, expected: tuple[int, int]
) -> None:
    assert plan_step(members, member_bytes, memory) == expected


def encoder_of(clip: ClipModel, text_pass: str) -> PromptEncoder:
    encoder = PromptEncoder(clip, NAMES, 4)
    encoder.mode = text_pass  # type: ignore[assignment]
    return encoder


def trained(clip: ClipModel, memory: float | None, text_pass: str = "packed") -> tuple[PromptLearner, Tensor]:
    recipe = Train(n_ctx=4, epochs=4, batch_size=8, lr=0.02)
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(21, 2, 24, generator=generator), dim=-1)
    encoder = encoder_of(clip, text_pass)
    learner = PromptLearner(encoder, features, torch.arange(21) % 7, range(3), recipe, 50.0, memory)
    for epoch in range(recipe.epochs):
        learner.train_epoch(epoch)
    return learner, learner.ctx.detach()


def initial(learner: PromptLearner) -> Tensor:
    """The contexts before training."""
    shape = learner.encoder.ctx_shape
    return torch.stack([torch.from_numpy(initial_ctx(learner.recipe, m, shape)) for m in learner.members])


@pytest.mark.parametrize("text_pass", ["packed", "truncated"])
@pytest.mark.parametrize("share", [2.5, 1.0, 0.4, 0.01])
def test_little_memory_changes_nothing_but_the_order_of_work(
    small_clip: ClipModel, text_pass: str, share: float
) -> None:
    all_at_once, expected = trained(small_clip, None, text_pass)
    member_bytes = all_at_once.encoder.activation_bytes()
    in_turn, ctx = trained(small_clip, share * member_bytes, text_pass)
    assert (in_turn.members_at_once, len(in_turn.encoder.chunks)) != (3, 1)
    assert float((expected - initial(in_turn)).abs().max()) > 0.01  # something was learned
    torch.testing.assert_close(ctx, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text_pass", ["packed", "truncated"])
def test_the_estimate_is_above_what_autograd_keeps_and_not_far(small_clip: ClipModel, text_pass: str) -> None:
    encoder = encoder_of(small_clip, text_pass)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in small_clip.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        features = encoder(torch.randn(1, 4, encoder.width, requires_grad=True))
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    assert features.requires_grad
    assert 0.3 * encoder.activation_bytes() < activations <= encoder.activation_bytes()


def test_half_precision_of_the_tower_stays_near_and_keeps_the_context_in_full(small_clip: ClipModel) -> None:
    recipe = Train(n_ctx=4, epochs=4, batch_size=8, lr=0.02, precision="bf16")
    features = torch.nn.functional.normalize(torch.randn(21, 2, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    encoder = PromptEncoder(small_clip, NAMES, 4)
    learner = PromptLearner(encoder, features, torch.arange(21) % 7, range(3), recipe, 50.0)
    for epoch in range(recipe.epochs):
        learner.train_epoch(epoch)
    _, exact = trained(small_clip, None)
    assert learner.ctx.dtype == torch.float32
    moved = float((exact - initial(learner)).norm())
    assert 0 < float((learner.ctx.detach() - exact).norm()) < 0.1 * moved
