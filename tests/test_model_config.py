"""Models that lie in a folder: damaged files are refused before an actor dies of them, good ones are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
from conftest import MakeModel
from open_clip.pretrained import get_pretrained_cfg

from upl_ray.backbones import load_tokenizer, resolve
from upl_ray.config import Backbone, ConfigError
from upl_ray.model_config import read_model_config


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load_tokenizer(resolve(Backbone(model=f"local-dir:{folder}")).source)
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("model", open_clip.list_models())
def test_every_published_configuration_is_read_as_it_is(model: str) -> None:
    model_cfg = open_clip.get_model_config(model)
    for tag in open_clip.list_pretrained_tags_by_model(model):
        preprocess = get_pretrained_cfg(model, tag)
        data = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess})
        assert list(read_model_config(data.encode())) == json.loads(json.dumps([model_cfg, preprocess]))


def test_what_is_left_out_or_null_is_open_clips_default(make_model: MakeModel) -> None:
    file = make_model() / "open_clip_config.json"
    published = json.loads(file.read_text())
    file.write_text(json.dumps({**published, "preprocess_cfg": {"mean": None, "interpolation": None}}))
    left_out = resolve(Backbone(model=f"local-dir:{file.parent}"))
    file.write_text(json.dumps({**published, "preprocess_cfg": None}))
    assert resolve(Backbone(model=f"local-dir:{file.parent}")) == left_out
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
        (("model_cfg", "text_cfg", "tokenizer_kwargs"), {"bpe_path": "none.gz"}, "tokenizer .*none.gz"),
        (("model_cfg", "text_cfg", "tokenizer_kwargs"), {"bpe_path": "open_clip_config.json"}, "tokenizer .*gzip"),
        (("preprocess_cfg",), "x", "preprocess_cfg.*'x'"),
        (("preprocess_cfg", "mean"), "x", "mean.*'x'"),
        (("preprocess_cfg", "mean"), [0.5], r"mean.*\[0.5\]"),
        (("preprocess_cfg", "mean"), ["a", "b", "c"], "mean.*'a'"),
        (("preprocess_cfg", "mean"), [0.5, 0.5, float("nan")], "mean.*nan"),
        (("preprocess_cfg", "std"), [0.5, 0.5, 0], "std.* 0"),
        (("preprocess_cfg", "mode"), "L", "mode.*'RGB'.*'L'"),
        (("preprocess_cfg", "interpolation"), "best", "interpolation.*'bicubic'.*'best'"),
        (("preprocess_cfg", "resize_mode"), "zoom", "resize_mode.*'squash'.*'zoom'"),
        (("preprocess_cfg", "fill_color"), 999, "fill_color.*255.*999"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_with_field_and_value(
    place: tuple[str, ...], value: Any, words: str, make_model: MakeModel
) -> None:
    file = make_model() / "open_clip_config.json"
    published = json.loads(file.read_text())
    holder = published
    for name in place[:-1]:
        holder = holder[name]
    if place:
        holder[place[-1]] = value
    file.write_text(json.dumps(published if place else value))
    message = refusal(file.parent)
    assert re.search(words, message), message


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\udcff"], ids=ascii)
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


@pytest.mark.parametrize("damage", ["empty", "broken zip"])
def test_damaged_weights_of_torch_are_refused_too(damage: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(DAMAGES[damage](b"x" * 1000))
    with pytest.raises(ConfigError, match=r"weights.pt' of RN50 cannot be read \(.*\); save or download them again"):
        resolve(Backbone(model="RN50", pretrained=str(weights), quick_gelu=True))


def test_weights_that_are_a_folder_or_have_too_long_a_name_are_refused(tmp_path: Path, make_model: MakeModel) -> None:
    weights = make_model() / "open_clip_model.safetensors"
    weights.unlink()
    weights.mkdir()
    assert "cannot be read" in refusal(weights.parent)
    with pytest.raises(ConfigError, match="neither a file nor one of the tags"):
        resolve(Backbone(model="RN50", pretrained="x" * 5000, quick_gelu=True))
