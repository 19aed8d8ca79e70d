"""The same results on a CUDA device as on the CPU; skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
from models import MakeModel, resolve_folder

from upl_ray.config.settings import Train
from upl_ray.pipeline.features import Encoder
from upl_ray.upl.clip_model import ClipModel, send_pixels
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine"),
]
NAMES = ("cat", "sea horse", "a very long name of a bird", "dog", "hot air balloon")

TOWERS = {"vit": {}, "resnet": {"vision": {"layers": [1, 1, 1, 1], "head_width": 32, "patch_size": None}}}


def crops(n: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


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


@pytest.fixture
def _nothing_is_compiled() -> None:
    torch.compiler.reset()  # a program serves every model of the same shapes in this process


@pytest.fixture(params=TOWERS)
def spec(request: pytest.FixtureRequest, make_model: MakeModel) -> ClipSpec:
    return resolve_folder(make_model(**TOWERS[request.param]))


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


def test_image_features_equal_those_of_the_cpu(spec: ClipSpec) -> None:
    cpu, gpu = (ClipModel(spec, device=d).encode_crops(crops(5)).astype(np.float32) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu, cpu, atol=2e-3)  # half precision in storage


@pytest.fixture
def _tf32_as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_pixels_arrive_as_they_are(pair: tuple[ClipModel, ClipModel]) -> None:
    device, pixels = pair[1].device, torch.from_numpy(crops(64))
    sent = [send_pixels(pixels + i, device) for i in range(50)]  # many are on their way at once
    assert all(torch.equal(x.cpu(), pixels + i) for i, x in enumerate(sent))


def test_chunks_on_their_way_together_have_bitwise_the_features_of_each_alone(spec: ClipSpec) -> None:
    clip = ClipModel(spec, device="cuda")
    chunks = [crops(64, seed) for seed in range(20)]
    alone = []
    for chunk in chunks:
        x = torch.from_numpy(chunk).cuda().permute(0, 3, 1, 2).float().contiguous(memory_format=clip.layout)
        with torch.inference_mode():
            features = clip.model.encode_image((x / 255 - clip._mean) / clip._std).float()
        alone.append(torch.nn.functional.normalize(features, dim=-1).half().cpu().numpy())
        torch.cuda.synchronize()
    together = [clip.finish_crops(b) for b in [clip.begin_crops(c) for c in chunks]]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.usefixtures("_tf32_as_before")
def test_two_threads_get_the_features_of_one_and_only_the_encoder_allows_tf32(spec: ClipSpec) -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
    ClipModel(spec, device="cuda")
    assert not torch.backends.cuda.matmul.allow_tf32
    encoder = Encoder(spec, "features", True, "cuda", 64)
    assert torch.backends.cuda.matmul.allow_tf32
    rows = [{"chunk": i, spec.geometry.key: crops(64, i)} for i in range(20)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(encoder, rows))
    for row, made in zip(rows, found, strict=True):
        assert made.keys() == {"chunk", "features"}
        assert np.array_equal(made["features"], encoder.clip.encode_crops(row[spec.geometry.key]))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_channels_last_is_for_convolutional_towers_and_changes_only_rounding(spec: ClipSpec, precision: str) -> None:
    clip, contiguous = (ClipModel(spec, precision, device="cuda") for _ in range(2))
    convolutional = isinstance(json.loads(spec.model_cfg)["vision_cfg"]["layers"], list)
    assert (clip.layout == torch.channels_last) == convolutional
    contiguous.layout = torch.contiguous_format
    contiguous.model.visual.to(memory_format=torch.contiguous_format)
    apart = 2e-2 if precision == "bf16" else 2e-3
    np.testing.assert_allclose(clip.encode_crops(crops(8)), contiguous.encode_crops(crops(8)), rtol=0, atol=apart)


@pytest.mark.usefixtures("_nothing_is_compiled")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_compiled_tower_gives_the_features_of_the_plain_one(spec: ClipSpec, precision: str) -> None:
    clip, compiled = (ClipModel(spec, precision, device="cuda") for _ in range(2))
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled.compile_images(8)
        features, few = compiled.encode_crops(crops(8)), compiled.encode_crops(crops(8)[:3])
    apart = 2e-2 if precision == "bf16" else 2e-3
    np.testing.assert_allclose(features, clip.encode_crops(crops(8)), rtol=0, atol=apart)
    assert np.array_equal(few, features[:3])
