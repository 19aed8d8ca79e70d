"""Backbones before they are loaded: what cannot work is refused in a sentence, what open_clip publishes is not."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from models import TEXT, VISION, MakeModel, resolve_folder
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import load_file, save_file

from upl_ray.config.settings import UPL_STAR, Backbone, expand_backbones
from upl_ray.errors import ConfigError
from upl_ray.upl.backbones import load_tokenizer, needs_quick_gelu, read_model_config, resolve_backbone
from upl_ray.upl.clip_model import ClipModel

PUBLISHED: dict[str, Any] = {
    "model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
}


def places(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every place of a JSON value, from the whole to single fields."""
    yield place
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*place, name))


def changed(config: Any, place: tuple[str, ...], value: Any) -> Any:
    """A copy of the configuration with another value at a place."""
    if not place:
        return value
    return {**config, place[0]: changed(config.get(place[0], {}), place[1:], value)}


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        resolve_folder(folder)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_every_published_configuration_is_read_as_it_is() -> None:
    for model, tag in open_clip.list_pretrained():
        model_cfg, preprocess = open_clip.get_model_config(model), get_pretrained_cfg(model, tag)
        data = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess})
        assert list(read_model_config(data.encode())) == json.loads(json.dumps([model_cfg, preprocess])), (model, tag)


def test_what_is_left_out_or_null_is_open_clips_default(make_model: MakeModel) -> None:
    file = make_model() / "open_clip_config.json"
    published = json.loads(file.read_text())
    file.write_text(json.dumps({**published, "preprocess_cfg": {"mean": None, "interpolation": None}}))
    left_out = resolve_folder(file.parent)
    file.write_text(json.dumps({**published, "preprocess_cfg": None}))
    assert resolve_folder(file.parent) == left_out
    assert left_out.mean == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ((), [], "object"),
        ((), None, "object"),
        ((), {}, "model_cfg: this field is required"),
        (("model_cfg",), "x", "model_cfg: it should be an object; it is 'x'"),
        (("model_cfg",), {}, "embed_dim: this field is required"),
        (("model_cfg", "embed_dim"), "x", "embed_dim.*'x'"),
        (("model_cfg", "vision_cfg"), "x", "vision_cfg.*'x'"),
        (("model_cfg", "vision_cfg", "image_size"), "big", "image_size.*'big'"),
        (("model_cfg", "vision_cfg", "image_size"), [1, 2, 3], r"image_size.*\[1, 2, 3\]"),
        (("model_cfg", "vision_cfg", "image_size"), 0, "image_size.* 0"),
        (("model_cfg", "vision_cfg", "image_size"), None, "image_size.* None"),
        (("model_cfg", "text_cfg"), None, "text_cfg.*object"),
        (("model_cfg", "text_cfg", "tokenizer_kwargs"), "x", "tokenizer_kwargs.*'x'"),
        (("preprocess_cfg",), "x", "preprocess_cfg.*'x'"),
        (("preprocess_cfg", "mean"), "x", "mean.*'x'"),
        (("preprocess_cfg", "mean"), [0.5], r"mean.*\[0.5\]"),
        (("preprocess_cfg", "mean"), ["a", "b", "c"], "mean.*'a'"),
        (("preprocess_cfg", "mean"), [0.5, 0.5, float("nan")], "mean.*nan"),
        (("preprocess_cfg", "std"), [0.5, 0.5, 0], "std.* 0"),
        (("preprocess_cfg", "mean"), [122.7, 116.7, 104.0], r"mean.* between 0 and 1, so divide it by 255.*122\.7"),
        (("preprocess_cfg", "std"), 68.5, r"std.* divide it by 255.*68\.5"),
        (("preprocess_cfg", "mode"), "L", "mode.*'RGB'.*'L'"),
        (("preprocess_cfg", "interpolation"), "best", "interpolation.*'bicubic'.*'best'"),
        (("preprocess_cfg", "resize_mode"), "zoom", "resize_mode.*'squash'.*'zoom'"),
        (("preprocess_cfg", "fill_color"), 999, "fill_color.*255.*999"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_with_field_and_value(
    place: tuple[str, ...], value: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=rf"^open_clip_config\.json: .*{words}") as error:
        read_model_config(json.dumps(changed(PUBLISHED, place, value)).encode())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "words"),
    [("none.gz", "none.gz"), ("open_clip_config.json", "gzip"), ("empty.gz", "'empty.gz' holds no vocabulary")],
)
def test_a_vocabulary_that_cannot_be_read_is_refused(file: str, words: str, make_model: MakeModel) -> None:
    folder = make_model(text={"tokenizer_kwargs": {"bpe_path": file}})
    (folder / "empty.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=f"tokenizer of .*{words}"):
        load_tokenizer(resolve_folder(folder).source)


def test_whatever_stands_in_a_configuration_it_is_understood_or_refused_by_its_folder(make_model: MakeModel) -> None:
    """Each place of the file, read here or not, takes each kind of value."""
    file = make_model() / "open_clip_config.json"
    published = json.loads(file.read_text())
    values = (None, True, -1, 0, 7, 0.5, 1e999, "x", [], [1, 2, 3], {}, {"x": [None]})
    understood, messages = 0, []
    for place, value in itertools.product(places(published), values):
        file.write_text(json.dumps(changed(published, place, value)))
        try:
            ClipModel(resolve_folder(file.parent), device="cpu")
            understood += 1
        except ConfigError as error:
            messages.append(str(error))
    assert [m for m in messages if str(file.parent) not in m] == []
    assert (understood > 15, len(messages) > 50) == (True, True)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\udcff"], ids=["empty", "cut", "deep", "no text"])
def test_a_configuration_that_is_no_json_is_refused(text: str, make_model: MakeModel) -> None:
    file = make_model() / "open_clip_config.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert "open_clip_config.json: Invalid JSON" in refusal(file.parent)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "noise": lambda data: b"noise" * 100,
    "broken zip": lambda data: b"PK\x03\x04" + data[:500] + b"PK\x05\x06" + b"\xff" * 18,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused(damage: str, make_model: MakeModel) -> None:
    weights = make_model() / "open_clip_model.safetensors"
    weights.write_bytes(DAMAGES[damage](weights.read_bytes()))
    assert f"The weights {str(weights)!r} of " in refusal(weights.parent)


def hugging_faces(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"vision_model.{n}" if n.startswith("visual") else f"text_model.{n}": t for n, t in state.items()}


MISFITS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "names of Hugging Face": (hugging_faces, r"the file lacks \w+ and \d+ more, and the model has no \w+_model\.\w+"),
    "another width": (
        lambda state: {n: t.repeat_interleave(2, dim=-1) if t.ndim else t for n, t in state.items()},
        r"text_projection is \[32, 48\] in the file and \[32, 24\] in the model",
    ),
    "another vocabulary": (
        lambda state: {**state, "token_embedding.weight": torch.zeros(100, 32)},
        r"token_embedding.weight is \[100, 32\] in the file and \[49408, 32\] in the model",
    ),
    "vocabulary and positions": (
        lambda state: {
            **state,
            "token_embedding.weight": torch.zeros(9, 32),
            "positional_embedding": torch.ones(9, 32),
        },
        r"token_embedding.weight is \[9, 32\] in the file and \[49408, 32\] in the model",
    ),
    "one tensor more": (lambda state: {**state, "x": torch.zeros(1)}, "the model has no x;"),
    "one tensor less": (lambda state: {n: t for n, t in state.items() if n != "ln_final.bias"}, "lacks ln_final.bias;"),
    "no tensors": (lambda state: {}, r"the file lacks positional_embedding and \d+ more;"),
}


@pytest.mark.parametrize("form", ["safetensors", "pth"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_weights_of_another_model_are_refused_before_they_are_loaded(
    misfit: str, form: str, make_model: MakeModel
) -> None:
    change, words = MISFITS[misfit]
    weights = make_model() / "open_clip_model.safetensors"
    state = {n: t.contiguous() for n, t in change(load_file(weights)).items()}
    weights.unlink()
    weights = weights.with_suffix(f".{form}")
    if form == "pth":
        torch.save({"epoch": 3, "state_dict": state}, weights)
    else:
        save_file(state, weights)
    message = refusal(weights.parent)
    assert re.search(words, message), message
    assert re.match(rf"The weights '{weights}' do not fit the model .*; use weights of this architecture", message)
    assert "\n" not in message


@pytest.mark.parametrize("form", ["module", "positions", "scale", "torch"])
def test_weights_that_open_clip_adapts_are_accepted_and_load(form: str, make_model: MakeModel) -> None:
    weights = make_model() / "open_clip_model.safetensors"
    state = load_file(weights)
    if form == "module":  # of training on several GPUs
        state = {f"module.{n}": t for n, t in state.items()}
    elif form == "positions":  # of a longer context and larger images
        state |= {"positional_embedding": torch.ones(77, 32), "visual.positional_embedding": torch.ones(50, 32)}
    elif form == "scale":
        state["logit_scale"] = state["logit_scale"].reshape(1)
    if form == "torch":
        weights.unlink()
        torch.save(state, weights.with_suffix(".pth"))
    else:
        save_file(state, weights)
    assert ClipModel(resolve_folder(weights.parent), device="cpu").encode_texts(["a dog"]).shape == (1, 24)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_positions_of_16_bits_are_not_stretched(dtype: torch.dtype, form: str, make_model: MakeModel) -> None:
    weights = make_model() / "open_clip_model.safetensors"
    own = {n: t.to(dtype) for n, t in load_file(weights).items()}
    weights.unlink()

    def save(state: dict[str, torch.Tensor]) -> None:
        path = weights.with_suffix(f".{form}")
        save_file(state, path) if form == "safetensors" else torch.save(state, path)

    save(own)
    assert ClipModel(resolve_folder(weights.parent), device="cpu").encode_texts(["a dog"]).shape == (1, 24)
    save({**own, "visual.positional_embedding": torch.ones(50, 32, dtype=dtype)})
    assert "hold 16 bits a number and are for another image_size" in refusal(weights.parent)


def test_a_model_that_needs_a_package_says_which(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    folder = make_model()
    file = folder / "open_clip_config.json"
    published = json.loads(file.read_text())
    published["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "x"
    file.write_text(json.dumps(published))
    assert "needs the package transformers; install it on every node: pip install transformers" in refusal(folder)
    with pytest.raises(ConfigError, match=r"tokenizer of .* needs a package .*transformers.*; install it with pip"):
        load_tokenizer(f"local-dir:{folder}")


def test_a_home_folder_is_followed_in_both_fields(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model()
    monkeypatch.setenv("HOME", str(folder.parent))
    spec = resolve_backbone(Backbone(model=f"local-dir:~/{folder.name}"))
    assert (spec.source, spec.backbone.model) == (f"local-dir:{folder}",) * 2
    assert spec.identity() == resolve_folder(folder).identity()
    assert len(load_tokenizer(spec.source)(["a"])[0]) == 20
    (folder.parent / "weights.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"{folder.parent}/weights.pt' of RN50 cannot be read"):
        resolve_backbone(Backbone(model="RN50", pretrained="~/weights.pt", quick_gelu=True))


@pytest.mark.parametrize("place", ["{}", "./none", "~/none", "../none", "/no/such/folder", "model"])
def test_a_path_as_backbone_is_refused_with_the_way_to_write_it(
    place: str, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place.format(make_model())
    monkeypatch.chdir(tmp_path)
    (backbone,) = expand_backbones([place])
    with pytest.raises(ConfigError, match=rf"^The backbone '{place}' is a path; write local-dir:FOLDER"):
        resolve_backbone(backbone)


@pytest.mark.parametrize("damage", ["empty", "broken zip"])
def test_damaged_weights_of_torch_are_refused_too(damage: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(DAMAGES[damage](b"x" * 1000))
    with pytest.raises(ConfigError, match=r"weights.pt' of RN50 cannot be read \(.*\); save or download them again"):
        resolve_backbone(Backbone(model="RN50", pretrained=str(weights), quick_gelu=True))


@pytest.mark.parametrize("content", ["half", "pointer", "objects"])
def test_weights_of_torch_in_a_folder_that_cannot_be_read_are_not_called_those_of_another_model(
    content: str, make_model: MakeModel
) -> None:
    weights = make_model() / "open_clip_model.safetensors"
    saved = weights.with_name("open_clip_pytorch_model.bin")
    if content == "objects":
        torch.save(torch.nn.Linear(2, 2), saved)
    else:
        torch.save(load_file(weights), saved, _use_new_zipfile_serialization=False)
        whole = saved.read_bytes()
        saved.write_bytes(
            whole[: len(whole) // 2] if content == "half" else b"version https://git-lfs.github.com/spec/v1\n"
        )
    weights.unlink()
    message = refusal(saved.parent)
    assert re.fullmatch(rf"The weights '{saved}' of .* cannot be read \(.+\); save or download them again\.", message)


def test_weights_in_parts_or_under_another_suffix_are_refused_with_the_names_that_are_read(
    make_model: MakeModel,
) -> None:
    weights = make_model() / "open_clip_model.safetensors"
    part = weights.rename(weights.with_name("model-00001-of-00002.safetensors"))
    assert re.search(
        r"in parts \(model-00001-of-00002\.safetensors\).*as one file, model\.safetensors;", refusal(part.parent)
    )
    other = part.rename(weights.with_name("open_clip_model.pt"))
    assert "no weights file (*.safetensors, *.bin, *.pth) lies in" in refusal(other.parent)


def test_options_that_no_tokenizer_has_are_refused(make_model: MakeModel) -> None:
    folder = make_model()
    file = folder / "open_clip_config.json"
    published = json.loads(file.read_text())
    for options, words in (({"cleaned": True}, "unexpected keyword argument 'cleaned'"), ({"clean": "x"}, "Invalid")):
        published["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = options
        file.write_text(json.dumps(published))
        with pytest.raises(ConfigError, match=f"tokenizer of .* cannot be read .*{words}"):
            load_tokenizer(f"local-dir:{folder}")
        load_tokenizer.cache_clear()


def test_weights_that_are_a_folder_or_have_too_long_a_name_are_refused(tmp_path: Path, make_model: MakeModel) -> None:
    weights = make_model() / "open_clip_model.safetensors"
    weights.unlink()
    weights.mkdir()
    assert "cannot be read" in refusal(weights.parent)
    with pytest.raises(ConfigError, match="neither a file nor one of the tags"):
        resolve_backbone(Backbone(model="RN50", pretrained="x" * 5000, quick_gelu=True))


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ({"model": "ViT-B16", "pretrained": "openai"}, ["'ViT-B16'", "did you mean", "ViT-B-16"]),
        ({"model": "qqqqqqqq"}, ["'qqqqqqqq'", "list_models"]),
        ({"model": "RN50", "pretrained": "opnai"}, ["'opnai'", "openai", "yfcc15m", "cc12m"]),
        ({"model": "RN50"}, ["pretrained", "openai", "yfcc15m", "cc12m"]),
        ({"model": "local-dir:/nowhere"}, ["local-dir:/nowhere", "open_clip_config.json"]),
        ({"model": "demo:nothing"}, ["demo:nothing"]),
        ({"model": "ViT-B-32-quickgelu", "pretrained": "laion2b_s34b_b79k"}, ["laion2b_s34b_b79k", "tags", "openai"]),
    ],
)
def test_an_unknown_model_or_tag_is_refused_with_a_remedy(backbone: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_backbone(Backbone(**backbone))
    assert [w for w in words if w not in str(error.value)] == []


def test_weights_and_activation_must_fit() -> None:
    with_it, without = {"quick_gelu": True}, {"quick_gelu": False}
    tagged = Backbone(model="ViT-B-32", pretrained="openai")
    unfit = tagged.model_copy(update={"quick_gelu": False})
    with pytest.raises(ConfigError, match=r"'openai' of ViT-B-32 were trained with QuickGELU.*leave it out"):
        needs_quick_gelu(unfit, without, {"quick_gelu": True})
    assert needs_quick_gelu(unfit, with_it, {}) is False
    assert needs_quick_gelu(tagged, without, {"quick_gelu": True}) is True
    assert needs_quick_gelu(tagged, with_it, {}) is True
    assert needs_quick_gelu(tagged, without, {"url": "of a tag without the flag"}) is False
    forced = tagged.model_copy(update={"quick_gelu": True})
    assert needs_quick_gelu(forced, without, {"quick_gelu": False}) is True


@pytest.mark.parametrize("model", UPL_STAR)
def test_openais_weights_get_quick_gelu_by_tag_and_a_file_must_say(model: str) -> None:
    cfg, published = open_clip.get_model_config(model), get_pretrained_cfg(model, "openai")
    assert needs_quick_gelu(Backbone(model=model, pretrained="openai"), cfg, published)
    file = Backbone(model=model, pretrained="/my/file.safetensors")
    with pytest.raises(ConfigError, match=r"file.safetensors' of .* needs QuickGELU.*true for those of openai"):
        needs_quick_gelu(file, cfg, {})
    assert needs_quick_gelu(file.model_copy(update={"quick_gelu": True}), cfg, {})
    assert not needs_quick_gelu(file.model_copy(update={"quick_gelu": False}), cfg, {})


def test_a_torchscript_archive_is_refused_before_an_actor_dies_of_it(tmp_path: Path) -> None:
    archive = str(tmp_path / "model.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), archive)
    with pytest.raises(ConfigError, match=r"model.pt' are a TorchScript archive"):
        resolve_backbone(Backbone(model="RN50", pretrained=archive, quick_gelu=True))


def test_every_published_model_is_accepted_with_each_of_its_tags() -> None:
    """open_clip lists roberta-ViT-B-32/laion2b_s12b_b32k, whose own configuration has QuickGELU."""
    for model, tag in open_clip.list_pretrained():
        cfg, published = open_clip.get_model_config(model), get_pretrained_cfg(model, tag)
        needs_quick_gelu(Backbone(model=model, pretrained=tag), cfg, published)


def test_compiled_features_have_another_identity_and_uncompiled_ones_keep_theirs(make_model: MakeModel) -> None:
    model = f"local-dir:{make_model()}"
    plain, compiled = (resolve_backbone(Backbone(model=model, compile=c)).identity() for c in (False, True))
    assert compiled == {**plain, "compile": True}
    assert set(plain) == {"version", "weights", "model", "preprocess", "quick_gelu", "precision"}
