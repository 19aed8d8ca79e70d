"""The same results on a CUDA device as on the CPU; skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import MakeModel, resolve_folder

from upl_ray.config.settings import Train
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine"),
]
NAMES = ("cat", "sea horse", "a very long name of a bird", "dog", "hot air balloon")


def trained(clip: ClipModel, precision: str, memory: float | None = None) -> PromptLearner:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(20, 2, 24, generator=generator), dim=-1)
    recipe = Train(n_ctx=4, epochs=4, batch_size=8, lr=0.02, precision=precision)  # type: ignore[arg-type]
    encoder = PromptEncoder(clip, NAMES, 4)
    learner = PromptLearner(encoder, features, torch.arange(20) % 5, range(3), recipe, 50.0, memory)
    for epoch in range(recipe.epochs):
        learner.train_epoch(epoch)
    return learner


@pytest.fixture
def pair(make_model: MakeModel) -> tuple[ClipModel, ClipModel]:
    """The same model on the CPU and on the GPU."""
    spec = resolve_folder(make_model())
    return ClipModel(spec, device="cpu"), ClipModel(spec, device="cuda")


@pytest.mark.parametrize("mode", ["packed", "truncated", "own"])
def test_every_pass_gives_the_features_and_gradients_of_the_cpu(pair: tuple[ClipModel, ClipModel], mode: str) -> None:
    results = []
    for clip in pair:
        encoder = PromptEncoder(clip, NAMES, 4)
        encoder.mode = mode  # type: ignore[assignment]
        start = torch.randn(2, 4, encoder.width, generator=torch.Generator().manual_seed(1))
        ctx = start.to(clip.device).requires_grad_()
        features = encoder(ctx)
        (gradient,) = torch.autograd.grad(features[..., 0].square().sum(), ctx)
        results.append((features.detach().cpu(), gradient.cpu()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=1e-4 * float(results[0][1].abs().max()))


def test_training_ends_with_the_contexts_of_the_cpu(pair: tuple[ClipModel, ClipModel]) -> None:
    cpu, gpu = (trained(clip, "fp32") for clip in pair)
    torch.testing.assert_close(gpu.ctx.detach().cpu(), cpu.ctx.detach(), rtol=0, atol=1e-4)
    little = trained(pair[1], "fp32", memory=0.4 * gpu.encoder.activation_bytes())
    torch.testing.assert_close(little.ctx.detach(), gpu.ctx.detach(), rtol=0, atol=1e-4)


def test_bf16_stays_near_fp32_and_its_context_is_float32(pair: tuple[ClipModel, ClipModel]) -> None:
    full, half = (trained(pair[1], precision) for precision in ("fp32", "bf16"))
    assert half.ctx.dtype == torch.float32
    similarity = torch.nn.functional.cosine_similarity(full.ctx.detach().flatten(1), half.ctx.detach().flatten(1))
    assert float(similarity.min()) > 0.98


def test_image_features_equal_those_of_the_cpu(pair: tuple[ClipModel, ClipModel]) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    cpu, gpu = (clip.encode_crops(crops).astype(np.float32) for clip in pair)
    np.testing.assert_allclose(gpu, cpu, atol=2e-3)  # half precision in storage
