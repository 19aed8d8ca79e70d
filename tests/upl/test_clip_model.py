"""Image features: the plain computation on CPUs, in any order of calls, and compiled towers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from models import MakeModel, resolve_folder

from upl_ray.errors import JobError
from upl_ray.upl.clip_model import DTYPES, ClipModel
from upl_ray.upl.clip_spec import ClipSpec

CROPS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
TOWERS = {"vit": {}, "resnet": {"vision": {"layers": [1, 1, 1, 1], "head_width": 32, "patch_size": None}}}


@pytest.fixture
def _nothing_is_compiled() -> None:
    torch.compiler.reset()  # a program serves every model of the same shapes in this process


@pytest.fixture(params=TOWERS)
def spec(request: pytest.FixtureRequest, make_model: MakeModel) -> ClipSpec:
    return resolve_folder(make_model(**TOWERS[request.param]))


@torch.inference_mode()
def plain(clip: ClipModel, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (clip.spec.mean, clip.spec.std))
    x = ((torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous().float() / 255) - mean) / std
    features = clip.model.encode_image(x.to(clip.dtype)).float()
    return torch.nn.functional.normalize(features, dim=-1).half().numpy()


@pytest.mark.parametrize("precision", DTYPES)
def test_features_on_a_cpu_are_bitwise_those_of_the_plain_computation(spec: ClipSpec, precision: str) -> None:
    clip = ClipModel(spec, precision, device="cpu")
    assert np.array_equal(clip.encode_crops(CROPS), plain(clip, CROPS))
    assert all(p.is_contiguous() for p in clip.model.visual.parameters())


def test_chunks_that_have_begun_finish_in_any_order(spec: ClipSpec) -> None:
    clip = ClipModel(spec, device="cpu")
    begun = [clip.begin_crops(CROPS[:4]), clip.begin_crops(CROPS[4:])]
    second, first = (clip.finish_crops(b) for b in reversed(begun))
    assert np.array_equal(first, plain(clip, CROPS[:4]))
    assert np.array_equal(second, plain(clip, CROPS[4:]))


def test_features_that_are_not_finite_are_refused(make_model: MakeModel) -> None:
    clip = ClipModel(resolve_folder(make_model()), device="cpu")
    clip.model.visual.proj.data[0, 0] = torch.nan
    with pytest.raises(JobError, match=r"not finite in torch\.float32; its weights hold .* no numbers: .*again"):
        clip.encode_crops(CROPS)
    clip.model.visual.proj.data.zero_()
    with pytest.raises(JobError, match=r"features that are zero or not finite in torch\.float32"):
        clip.encode_crops(CROPS)
    clip = ClipModel(resolve_folder(make_model("half")), "fp16", device="cpu")
    clip.model.visual.proj.data[0, 0] = torch.inf
    with pytest.raises(JobError, match=r"not finite in torch\.float16; set its precision to fp32"):
        clip.encode_crops(CROPS)


@pytest.mark.parametrize("name", ["token_embedding.weight", "text_projection", "ln_final.weight", "logit_scale"])
def test_weights_that_are_no_numbers_in_the_text_tower_are_refused(make_model: MakeModel, name: str) -> None:
    folder = make_model()
    weights = safetensors.torch.load_file(folder / "open_clip_model.safetensors")
    weights[name].fill_(torch.nan)
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    clip = ClipModel(resolve_folder(folder), device="cpu")
    assert bool(np.isfinite(clip.encode_crops(CROPS)).all())
    with pytest.raises(JobError, match=r"text features, or a logit scale, .*not finite; its weights hold .*again"):
        clip.encode_texts(["a dog", "a cat"])


def test_equal_features_of_all_texts_are_refused(make_model: MakeModel) -> None:
    clip = ClipModel(resolve_folder(make_model()), device="cpu")
    clip.model.text_projection.data.zero_()
    with pytest.raises(JobError, match=r"gives equal features to all texts; its weights hold .*again"):
        clip.encode_texts(["a dog", "a cat"])
    assert clip.encode_texts(["a dog"]).shape[0] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_nothing_is_compiled")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_tower_gives_the_features_of_the_plain_one_in_one_program(spec: ClipSpec, precision: str) -> None:
    clip, compiled = (ClipModel(spec, precision, device="cpu") for _ in range(2))
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled.compile_images(8)
        features = compiled.encode_crops(CROPS)
        few = compiled.encode_crops(CROPS[:3])
    np.testing.assert_allclose(features, clip.encode_crops(CROPS), rtol=0, atol=2e-2 if precision == "bf16" else 1e-3)
    assert np.array_equal(few, features[:3])


@pytest.mark.usefixtures("_nothing_is_compiled")
def test_without_a_compiler_there_is_one_sentence_and_no_other_features(make_model: MakeModel) -> None:
    clip = ClipModel(resolve_folder(make_model()), device="cpu")
    no_compiler = {"cpp.cxx": (None, "/no/g++"), "force_disable_caches": True}
    sentence = r"cannot be compiled on \S+ \(.*No working C\+\+ compiler.*\); install a C\+\+ compiler .*`compile`"
    with torch._inductor.config.patch(no_compiler), pytest.raises(JobError, match=sentence):
        clip.compile_images(8)
