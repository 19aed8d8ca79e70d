"""A backbone before it is loaded: its weights are found and hashed, its configuration is read and checked.

A backbone is a named model of open_clip with a pretrained tag or a weights file, or a model in a folder or on a hub,
where `open_clip_config.json` lies beside the weights. The result, `ClipSpec`, lies in a module that imports neither
torch nor open_clip: planning needs no more than that.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import math
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import (
    _find_checkpoint_in_dir,  # private, stable since open_clip 2.24
    load_state_dict,
    parse_model_name,
)
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from upl_ray.config.settings import Backbone, describe_validation_error
from upl_ray.demo import locate
from upl_ray.errors import ConfigError, first_line, quoted
from upl_ray.storage.store import absolute
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.hub import use_cache_where_unreachable
from upl_ray.upl.images import Geometry
from upl_ray.upl.rejection import MAX_PIXELS

log = logging.getLogger(__name__)

CONFIG_FILE = "open_clip_config.json"
POSITIONS = "visual.positional_embedding"  # stretched for other sizes of images
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}  # as safetensors call them


@dataclass(frozen=True)
class FoundWeights:
    """Where the weights of a backbone lie on this machine, and what is published with them."""

    source: str  # open_clip's model name, hf-hub: or local-dir:
    path: Path
    model_cfg: dict[str, Any]
    published: dict[str, Any]  # overrides of open_clip's preprocessing, and the tag's quick_gelu


def resolve_backbone(backbone: Backbone, max_pixels: int = MAX_PIXELS) -> ClipSpec:
    """Find, hash and check a backbone without loading it.

    Args:
        backbone: the backbone's section of the configuration.
        max_pixels: larger images are rejected [pixels].

    Raises:
        ConfigError: see `find_weights`; the weights are damaged, or not those of the model; or weights and activation
            function do not fit.
    """
    found = find_weights(backbone)
    digest, weights_bytes = _check_weights(found.path, backbone)
    _check_fit(found, backbone)
    preprocess = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), found.published))
    size = found.model_cfg["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    how = (preprocess.interpolation, preprocess.resize_mode, preprocess.fill_color)
    return ClipSpec(
        backbone=_with_absolute_paths(backbone),
        source=found.source,
        weights_sha256=digest,
        model_cfg=json.dumps(found.model_cfg, sort_keys=True),
        geometry=Geometry(height, width, *how, max_pixels),
        mean=_rgb(preprocess.mean),
        std=_rgb(preprocess.std),
        quick_gelu=needs_quick_gelu(backbone, found.model_cfg, found.published),
        weights_bytes=weights_bytes,
    )


def find_weights(backbone: Backbone) -> FoundWeights:
    """Locate a backbone's weights; published ones are downloaded into open_clip's cache.

    Raises:
        ConfigError: unknown model or tag, missing folder or file, a configuration that no model has, or a download
            that fails.
    """
    try:
        source = locate.backbone(backbone.model)
        schema, identifier = parse_model_name(source)
        if schema == "local-dir":
            folder = Path(absolute(identifier))
            model_cfg, preprocess = read_model_config((folder / CONFIG_FILE).read_bytes())
            weights = _find_checkpoint_in_dir(folder)
            if weights is None:
                raise FileNotFoundError(f"no weights file (*.safetensors, *.bin, *.pth) lies in {folder}")
            if parts := re.fullmatch(r"(.*)-\d{5}-of-\d{5}(\..*)", Path(weights).name):
                raise ValueError(
                    f"its weights lie in parts ({Path(weights).name}), of which open_clip reads one; save "
                    f"them as one file, {parts[1]}{parts[2]}"
                )
            return FoundWeights(f"local-dir:{folder}", Path(weights), model_cfg, preprocess)
        if schema == "hf-hub":
            use_cache_where_unreachable()
            config = Path(download_pretrained_from_hf(identifier, CONFIG_FILE))
            model_cfg, preprocess = read_model_config(config.read_bytes())
            return FoundWeights(source, Path(download_pretrained_from_hf(identifier)), model_cfg, preprocess)
    except (OSError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise ConfigError(
            f"The model {quoted(backbone.model)} cannot be read: {reason}; check its name or folder."
        ) from None
    return _find_named_weights(backbone)


def _find_named_weights(backbone: Backbone) -> FoundWeights:
    """The weights of one of open_clip's named models: a published tag, or a file."""
    model, pretrained = backbone.model, backbone.pretrained
    model_cfg = open_clip.get_model_config(model)
    if model_cfg is None:
        place = f"{model}/{pretrained}" if pretrained else model  # as `backbones: [PLACE]` was split
        if place.startswith(("/", "~", ".")) or os.path.exists(place):
            raise ConfigError(
                f"The backbone {place!r} is a path; write local-dir:FOLDER for a model's folder, or the fields `model` "
                f"and `pretrained` for a weights file."
            )
        close = difflib.get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "`open_clip.list_models()` lists all."
        raise ConfigError(f"open_clip knows no model {quoted(model)}; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not pretrained:
        raise ConfigError(f"The model {model!r} needs `pretrained`: a weights file or one of the tags {tags}.")
    tag_cfg = get_pretrained_cfg(model, pretrained)
    if not tag_cfg:
        file = os.path.expanduser(pretrained)
        if not os.path.isfile(file):  # pathlib's would raise for a name that is too long
            raise ConfigError(
                f"pretrained {quoted(pretrained)} of {model} is neither a file nor one of the tags {tags}."
            )
        return FoundWeights(model, Path(file).resolve(), model_cfg, {})
    use_cache_where_unreachable()
    try:
        weights = download_pretrained(tag_cfg)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The weights {model}/{pretrained} cannot be downloaded ({first_line(error)}); "
            f"check the network or give a file."
        ) from None
    return FoundWeights(model, Path(weights), model_cfg, tag_cfg)


def _with_absolute_paths(backbone: Backbone) -> Backbone:
    """The backbone for workers, whose working directory is another one."""
    changes: dict[str, str] = {}
    if backbone.model.startswith("local-dir:"):
        changes["model"] = f"local-dir:{absolute(backbone.model.removeprefix('local-dir:'))}"
    elif backbone.pretrained and os.path.isfile(os.path.expanduser(backbone.pretrained)):
        changes["pretrained"] = absolute(backbone.pretrained)
    return backbone.model_copy(update=changes)


def _rgb(value: Any) -> tuple[float, float, float]:
    r, g, b = value if isinstance(value, tuple | list) else (value,) * 3
    return float(r), float(g), float(b)


def needs_quick_gelu(backbone: Backbone, model_cfg: dict[str, Any], published: dict[str, Any]) -> bool:
    """True if the weights were trained with QuickGELU: a mismatch costs several points of accuracy silently.

    A pretrained tag records it. A weights file does not, so a model that has published weights of both kinds needs the
    setting `quick_gelu` beside a file.

    Raises:
        ConfigError: the setting contradicts the tag, or is missing beside a file.
    """
    configured, tagged = bool(model_cfg.get("quick_gelu", False)), bool(published.get("quick_gelu"))
    if backbone.quick_gelu is not None:
        if tagged and not backbone.quick_gelu:
            raise ConfigError(
                f"The weights {backbone.pretrained!r} of {backbone.model} were trained with QuickGELU, but "
                f"quick_gelu is false; leave it out."
            )
        return backbone.quick_gelu
    if not published and not configured and backbone.pretrained:  # a weights file of a named model
        tags = open_clip.list_pretrained_tags_by_model(backbone.model)
        quick = [t for t in tags if get_pretrained_cfg(backbone.model, t).get("quick_gelu")]
        if quick:
            raise ConfigError(
                f"Say whether the weights file {backbone.pretrained!r} of {backbone.model} needs QuickGELU: "
                f"quick_gelu: true for those of {', '.join(quick)}, else false."
            )
    if tagged and not configured:
        log.info("%s: QuickGELU switched on, as the weights %s need it", backbone.label, backbone.pretrained)
    return tagged or configured


# The weights file.


def _check_weights(weights: Path, backbone: Backbone) -> tuple[str, int]:
    """SHA-256 of the weights and their size in fp32 [bytes]; refuses weights that would kill an actor.

    A safetensors header is read and must fit the file's size; other files are checked for emptiness, a broken archive
    and TorchScript only.
    """
    try:
        script, digest, size = _is_torchscript(weights), file_sha256(weights), _weights_bytes(weights)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, SafetensorError) as error:
        raise _unreadable(weights, backbone, str(error)) from None
    if script:
        raise ConfigError(
            f"The weights {str(weights)!r} are a TorchScript archive, which can run code; use the pretrained tag "
            f"(`openai`) or save the state_dict as safetensors."
        )
    return digest, size


def _unreadable(weights: Path, backbone: Backbone, reason: str) -> ConfigError:
    return ConfigError(
        f"The weights {str(weights)!r} of {backbone.model} cannot be read ({reason}); save or download them again."
    )


def _check_fit(found: FoundWeights, backbone: Backbone) -> None:
    """Refuse weights whose names or shapes are not those of the model. Only the file's header is read.

    The model is built without memory, and older names are converted and positions interpolated as by open_clip's
    `load_checkpoint`. Arrays of big_vision (npz) have other names altogether, which open_clip copies one by one.
    """
    if found.path.suffix in (".npz", ".npy"):
        return
    text_cfg = found.model_cfg["text_cfg"]
    if {"hf_model_name", "hf_tokenizer_name"} & set(text_cfg) and not find_spec("transformers"):
        raise ConfigError(
            f"The model {backbone.model!r} needs the package transformers; install it on every node: "
            f"pip install transformers."
        )
    try:
        model = _build_empty(found.model_cfg)
    except Exception as error:  # noqa: BLE001  # open_clip's code meets values that no model has
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(
            f"The model {backbone.model!r} cannot be built ({reason}); correct its {CONFIG_FILE}."
        ) from None
    try:
        state = _read_header(found.path)
    except Exception as error:  # noqa: BLE001  # nor is a file that others have made limited to some
        raise _unreadable(found.path, backbone, first_line(error)) from None
    expected = model.state_dict().get(POSITIONS)
    if expected is not None and POSITIONS in state:
        positions = state[POSITIONS]
        if positions.itemsize < expected.itemsize and positions.shape != expected.shape:
            raise ConfigError(
                f"The weights {str(found.path)!r} hold {8 * positions.itemsize} bits a number and are for another "
                f"image_size than that of the model {quoted(backbone.model)}, which open_clip cannot adapt; save them "
                f"as float32, or give the model their image_size."
            )
    try:
        state = _adapt(state, model)
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
        model.load_state_dict(state)
    except Exception as error:  # noqa: BLE001  # of values that are no tensors
        raise ConfigError(
            f"The weights {str(found.path)!r} do not fit the model {backbone.model!r}: "
            f"{_difference(state, model.state_dict()) or first_line(error)}; use weights of this architecture, with "
            f"open_clip's names."
        ) from None


def _build_empty(model_cfg: dict[str, Any]) -> torch.nn.Module:
    """A model without memory, as open_clip's `create_model` builds it; no base weights of its towers are fetched."""
    cfg = copy.deepcopy(model_cfg)
    cfg["vision_cfg"]["timm_model_pretrained"] = cfg["text_cfg"]["hf_model_pretrained"] = False
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP
    with torch.device("meta"):
        model: torch.nn.Module = kind(**cfg)
    return model


def _adapt(state: dict[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """What open_clip's `load_checkpoint` does to names and logit scales; it takes no tensors, only a file."""
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a number, or a vector of one
        if name in state and getattr(model, name) is not None and state[name].numel() == 1:
            state[name] = state[name].reshape(getattr(model, name).shape)
    if "logit_bias" not in state and model.logit_bias is not None:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    state.pop("text.transformer.embeddings.position_ids", None)
    return state


def _read_header(weights: Path) -> dict[str, Tensor]:
    """Tensors without memory, by their names in a file of weights."""
    if weights.suffix != ".safetensors":
        try:
            state: dict[str, Tensor] = load_state_dict(str(weights), device="meta")
        except StopIteration:  # it holds no tensor
            return {}
        return state
    with safe_open(weights, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        headers = {name: (s.get_shape(), HALVES.get(s.get_dtype())) for name, s in slices.items()}
    return {
        name.removeprefix("module."): torch.empty(shape, dtype=dtype, device="meta")
        for name, (shape, dtype) in headers.items()
    }


def _difference(given: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """The first tensors that differ, of a file's and of a model's."""
    odd = [n for n, t in expected.items() if n in given and given[n].shape != t.shape]
    if odd:
        name = min(odd, key=lambda n: "positional_embedding" in n)  # these are interpolated
        return f"{name} is {list(given[name].shape)} in the file and {list(expected[name].shape)} in the model"
    missing, unknown = ([n for n in a if n not in b] for a, b in ((expected, given), (given, expected)))
    parts = [f"the file lacks {missing[0]}{_and_more(missing)}"] if missing else []
    parts += [f"the model has no {unknown[0]}{_and_more(unknown)}"] if unknown else []
    return ", and ".join(parts)


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _is_torchscript(weights: Path) -> bool:
    """True for archives that open_clip cannot load safely."""
    if not zipfile.is_zipfile(weights):
        return False
    with zipfile.ZipFile(weights) as archive:
        return any("/code/" in name for name in archive.namelist())


def _weights_bytes(weights: Path) -> int:
    """Size of the weights in fp32 [bytes]: by the header of safetensors; other files are taken to be fp32."""
    if weights.suffix != ".safetensors":
        size = weights.stat().st_size
        if not size:
            raise ValueError("the file is empty")
        return size
    with safe_open(weights, framework="numpy") as file:
        return sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The tokenizer.


@lru_cache(maxsize=16)  # reading the vocabulary takes a quarter of a second
def load_tokenizer(source: str) -> Any:
    """The model's tokenizer; a relative `bpe_path` in a local folder is resolved against that folder.

    Raises:
        ConfigError: its vocabulary is missing, damaged, or of a package that is not installed.
    """
    schema, identifier = parse_model_name(source)
    try:
        options = {}
        if schema == "local-dir":
            model_cfg, _ = read_model_config((Path(identifier) / CONFIG_FILE).read_bytes())
            bpe_path = model_cfg["text_cfg"].get("tokenizer_kwargs", {}).get("bpe_path")
            options = {"bpe_path": str(Path(identifier) / bpe_path)} if bpe_path else {}
        tokenizer = open_clip.get_tokenizer(source, **options)
        if options and not tokenizer.bpe_ranks:  # as of an empty file, which would part all words into letters
            raise ValueError(f"{bpe_path!r} holds no vocabulary")
        return tokenizer
    except ImportError as error:
        raise ConfigError(
            f"The tokenizer of {source!r} needs a package that is not installed here ({first_line(error)}); install it "
            f"with pip, on every node."
        ) from None
    except (
        OSError,
        ValueError,
        EOFError,
        zlib.error,
        TypeError,
        AssertionError,
    ) as error:  # the last two of its options
        raise ConfigError(f"The tokenizer of {source!r} cannot be read ({error}); repair the model's folder.") from None


def vocabulary_sha256(source: str) -> str:
    """SHA-256 of the vocabulary that a model brings; empty for open_clip's named models, which share its own.

    Raises:
        ConfigError: see `load_tokenizer`.
    """
    if parse_model_name(source)[0] is None:
        return ""
    load_tokenizer.cache_clear()  # in a notebook the file may have changed since
    tokenizer = load_tokenizer(source)
    words = tokenizer.encoder if hasattr(tokenizer, "encoder") else tokenizer.tokenizer.get_vocab()  # Hugging Face's
    return hashlib.sha256(json.dumps(sorted(words.items())).encode()).hexdigest()


def tokenize(tokenizer: Any, texts: list[str], free: int = 0) -> tuple[Tensor, Tensor]:
    """Texts as a model's own tokens, and which of them it cuts.

    A text is cut if more room changes more than its padding. This holds for every tokenizer; the last token alone shows
    nothing where padding is the end token (SigLIP) or takes its place (CLIPA).

    Args:
        tokenizer: as open_clip gives it: texts, context length -> token ids.
        texts: n of them.
        free: positions of the model's L that stay free.

    Returns:
        The ids [n, L - free] int64, and True for texts that are cut [n].
    """
    length = tokenizer(["a"]).shape[1] - free
    short, long = (tokenizer(texts, context_length=n).long() for n in (length, 2 * length))
    padding = tokenizer(["a"], context_length=64)[0].mode().values.item()
    padded = torch.nn.functional.pad(short, (0, length), value=padding)  # [n, 2 * (L - free)]
    return short, (padded.sort(dim=1).values != long.sort(dim=1).values).any(dim=1)


def find_equal(texts: Sequence[str], ids: Tensor) -> tuple[str, str] | None:
    """The first two different texts whose tokens [n, L] are equal: a model cannot tell them apart."""
    seen: dict[bytes, str] = {}
    for text, row in zip(texts, ids.numpy(), strict=True):
        if (first := seen.setdefault(row.tobytes(), text)) != text:
            return first, text
    return None


# `open_clip_config.json` of a model in a folder or on a hub: the fields that are read here. The rest is open_clip's.


class _Part(BaseModel):
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
    if max(colors) > 1:
        raise ValueError(f"pixels lie between 0 and 1, so divide it by 255; it is {value!r}")
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
    """Fields of open_clip's `PreprocessCfg`; null stands for its default."""

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
        ValueError: it is no JSON, or lacks a field or holds a value that no model can have; names the field.
    """
    try:
        _File.model_validate_json(data)
    except ValidationError as error:
        first = describe_validation_error(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{CONFIG_FILE}: {first}") from None
    published: dict[str, Any] = json.loads(data)
    return published["model_cfg"], published.get("preprocess_cfg") or {}
