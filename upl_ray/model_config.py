"""`open_clip_config.json`, which lies beside the weights of a model in a folder or hub: read and checked."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from upl_ray.section import sentence

FILE = "open_clip_config.json"


class _Part(BaseModel):
    """A part of the file: what is read of it here; the rest is open_clip's."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


def _sizes(value: Any) -> Any:
    sizes = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(type(s) is int and s > 0 for s in sizes):
        raise ValueError(f"it should be a number of pixels, or height and width; it is {value!r}")
    return value


def _colors(value: Any) -> Any:
    colors = value if isinstance(value, list) and len(value) == 3 else [value]
    if not all(type(c) in (int, float) and math.isfinite(c) for c in colors):
        raise ValueError(f"it should be a number, or three for red, green and blue; it is {value!r}")
    return value


def _not_zero(value: Any) -> Any:
    if 0 in (value if isinstance(value, list) else [value]):
        raise ValueError(f"pixels are divided by it, so it should not be 0; it is {value!r}")
    return value


class _Vision(_Part):
    image_size: Annotated[Any, AfterValidator(_sizes)] = 224


class _Tokenizer(_Part):
    bpe_path: str | None = None


class _Text(_Part):
    context_length: PositiveInt = 77
    tokenizer_kwargs: _Tokenizer = _Tokenizer()


class _Model(_Part):
    embed_dim: PositiveInt
    vision_cfg: _Vision
    text_cfg: _Text
    quick_gelu: bool = False


class _Preprocess(_Part):
    """Fields of open_clip's `PreprocessCfg`; for null it takes its defaults."""

    mode: Literal["RGB"] | None = None
    mean: Annotated[Any, AfterValidator(_colors)] | None = None
    std: Annotated[Any, AfterValidator(_colors), AfterValidator(_not_zero)] | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    fill_color: Annotated[int, Field(ge=0, le=255)] | None = None


class _File(_Part):
    model_cfg: _Model
    preprocess_cfg: _Preprocess | None = None


def read_model_config(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and preprocessing of a model, from the content of its file.

    Raises:
        ValueError: it is no JSON, or lacks a field or holds a value that no model can have; says which.
    """
    try:
        _File.model_validate_json(data)
    except ValidationError as error:
        first = sentence(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{FILE}: {first}") from None
    published: dict[str, Any] = json.loads(data)
    return published["model_cfg"], published.get("preprocess_cfg") or {}
