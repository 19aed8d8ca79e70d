"""Nothing is left on the CPU where a GPU computes: real code on tensors that claim to lie on one (`claimed_cuda`)."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from claimed_cuda import CUDA, Claimed, claimed_cuda, to_cuda
from models import MakeModel, resolve_folder
from torch import Tensor

from upl_ray.config.settings import Train
from upl_ray.upl import refine as refining
from upl_ray.upl import zero_shot
from upl_ray.upl.clip_model import ClipModel
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.ensemble import Ensemble
from upl_ray.upl.prompt_encoder import PromptEncoder
from upl_ray.upl.prompt_learner import PromptLearner

NAMES = ("cat", "sea horse", "a very long name of a bird", "dog", "hot air balloon")
CROPS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
TOWERS = {"vit": {}, "resnet": {"vision": {"layers": [1, 1, 1, 1], "head_width": 32, "patch_size": None}}}


def random(*shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return torch.nn.functional.normalize(x, dim=-1)


def on_both(compute: Callable[..., list[Tensor]], *inputs: Tensor) -> None:
    """Run here and on claimed CUDA: the results lie where they should, and are the same."""
    here = compute(*inputs)
    with claimed_cuda():
        there = compute(*map(Claimed, inputs))
    assert [x.device for x in there] == [CUDA] * len(here)
    torch.testing.assert_close([x.content for x in there], here)  # type: ignore[attr-defined]


@pytest.fixture(params=TOWERS)
def spec(request: pytest.FixtureRequest, make_model: MakeModel) -> ClipSpec:
    return resolve_folder(make_model(**TOWERS[request.param]))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_images_and_texts_are_encoded_on_the_device(spec: ClipSpec, precision: str) -> None:
    here = ClipModel(spec, device="cpu", precision=precision)
    there = to_cuda(ClipModel(spec, device="cpu", precision=precision))
    with claimed_cuda():
        features, texts = there.encode_crops(CROPS), there.encode_texts(list(NAMES))
    convolutional = there.layout == torch.channels_last
    assert convolutional == isinstance(json.loads(spec.model_cfg)["vision_cfg"]["layers"], list)
    # In that layout a convolution sums in another order.
    np.testing.assert_allclose(features, here.encode_crops(CROPS), rtol=0, atol=5e-4 * convolutional)
    assert torch.equal(texts, here.encode_texts(list(NAMES)))


def learned(clip: ClipModel, mode: str, precision: str, soft: bool) -> list[Tensor]:
    """Losses of one batch and the class features, forward."""
    recipe = Train(n_ctx=4, epochs=2, batch_size=8, precision=precision)  # type: ignore[arg-type]
    encoder = PromptEncoder(clip, NAMES, 4)
    encoder.mode = mode  # type: ignore[assignment]
    labels = torch.softmax(random(20, 5), dim=-1) if soft else torch.arange(20) % 5
    prior = torch.full((5,), 0.2) if soft else None
    learner = PromptLearner(encoder, random(20, 2, 24), labels, range(3), recipe, 50.0, None, prior)
    batch = [x[:8].expand(3, *x[:8].shape) for x in (learner.view_features[:, 0], learner.pseudo_labels)]
    with torch.no_grad():
        return [learner.losses(learner.ctx, *batch), learner.text_features()]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["packed", "truncated", "own"])
def test_prompts_are_learned_on_the_device(make_model: MakeModel, mode: str, precision: str, soft: bool) -> None:
    spec = resolve_folder(make_model())
    here = learned(ClipModel(spec, device="cpu"), mode, precision, soft)
    clip = to_cuda(ClipModel(spec, device="cpu"))
    with claimed_cuda():
        there = learned(clip, mode, precision, soft)
    assert [x.device for x in there] == [CUDA, CUDA]
    loose = {"rtol": 0.02, "atol": 0.02} if precision == "bf16" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close([x.content for x in there], here, **loose)  # type: ignore[attr-defined]


def test_zero_shot_and_the_ensemble_classify_on_the_device() -> None:
    def classified(images: Tensor, texts: Tensor) -> list[Tensor]:
        about = {"ensemble": "probabilities", "logit_scale": 50.0, "class_shares": [0.1, 0.2, 0.3, 0.15, 0.25]}
        ensemble = Ensemble(texts, texts, about)
        mean = zero_shot.average_templates(texts)
        return [zero_shot.probabilities(images, mean, 50.0), *ensemble.classify(images, "corpus")]

    on_both(classified, random(7, 24), random(3, 5, 24))


def test_words_compete_on_the_device() -> None:
    def shares(images: Tensor, texts: Tensor, words: Tensor) -> list[Tensor]:
        ensemble = Ensemble(texts[None], texts, {"logit_scale": 50.0}, (texts, words))
        found = ensemble.known(images)
        assert found is not None
        return [found, zero_shot.competing(words, texts).float()]

    on_both(shares, random(7, 24), random(5, 24), random(9, 24))


def test_labels_are_refined_on_the_device() -> None:
    def refined(first: Tensor, second: Tensor, probabilities: Tensor) -> list[Tensor]:
        found = refining.refine([first, second], probabilities, sweeps=3)
        return [found.probabilities, found.class_shares]

    on_both(refined, random(60, 24), random(60, 16), torch.softmax(20 * random(60, 5), dim=-1))


@pytest.mark.parametrize("forgotten", ["_mean", "_std"])
def test_a_tensor_that_was_forgotten_on_the_cpu_is_found(make_model: MakeModel, forgotten: str) -> None:
    clip = to_cuda(ClipModel(resolve_folder(make_model()), device="cpu"))
    setattr(clip, forgotten, getattr(clip, forgotten).content)
    with claimed_cuda(), pytest.raises(RuntimeError, match="would read tensors on cuda:0 and cpu"):
        clip.encode_crops(CROPS)


def test_a_mask_that_was_forgotten_on_the_cpu_is_found(make_model: MakeModel) -> None:
    clip = to_cuda(ClipModel(resolve_folder(make_model()), device="cpu"))
    with claimed_cuda():
        encoder = PromptEncoder(clip, NAMES, 4)
        assert encoder.mode == "packed"
        encoder.packed[0].mask = encoder.packed[0].mask.cpu()
        with pytest.raises(RuntimeError, match="would read tensors on cuda:0 and cpu"):
            encoder(torch.zeros(2, 4, encoder.width, device=CUDA))
