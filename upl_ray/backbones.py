"""Finds, hashes and checks a backbone's weights: named models with a pretrained tag, hubs, folders and files."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import os
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import _find_checkpoint_in_dir, parse_model_name  # private, stable since open_clip 2.24
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors import SafetensorError, safe_open

from upl_ray.clip_spec import ClipSpec
from upl_ray.config import Backbone, ConfigError
from upl_ray.demo import locate
from upl_ray.images import MAX_PIXELS, Geometry
from upl_ray.model_config import FILE, read_model_config

log = logging.getLogger(__name__)


def find_weights(backbone: Backbone) -> tuple[str, Path, dict[str, Any], dict[str, Any]]:
    """Locate a backbone's weights, downloading them into open_clip's cache if they are published ones.

    Returns:
        open_clip's name of the model, the weights file, the model's configuration, and the preprocessing overrides and
        `quick_gelu` flag that come with the weights.

    Raises:
        ConfigError: unknown model or tag, missing folder or file, or a download that fails.
    """
    try:
        source = locate.backbone(backbone.model)
        schema, identifier = parse_model_name(source)
        if schema == "local-dir":
            folder = Path(identifier)
            model_cfg, preprocess = read_model_config((folder / FILE).read_bytes())
            weights = _find_checkpoint_in_dir(folder)
            if weights is None:
                raise FileNotFoundError(f"no weights file lies in {folder}")
            return source, Path(weights), model_cfg, preprocess
        if schema == "hf-hub":
            model_cfg, preprocess = read_model_config(Path(download_pretrained_from_hf(identifier, FILE)).read_bytes())
            return source, Path(download_pretrained_from_hf(identifier)), model_cfg, preprocess
    except (OSError, ValueError) as error:
        told = str(error).rstrip(".")
        raise ConfigError(f"The model {backbone.model!r} cannot be read: {told}; check its name or folder.") from None
    return _named_weights(backbone)


def _named_weights(backbone: Backbone) -> tuple[str, Path, dict[str, Any], dict[str, Any]]:
    model, pretrained = backbone.model, backbone.pretrained
    model_cfg = open_clip.get_model_config(model)
    if model_cfg is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "`open_clip.list_models()` lists all."
        raise ConfigError(f"open_clip knows no model {model!r}; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not pretrained:
        raise ConfigError(f"The model {model!r} needs `pretrained`: a weights file or one of the tags {tags}.")
    tag_cfg = get_pretrained_cfg(model, pretrained)
    if not tag_cfg:
        if not os.path.isfile(pretrained):  # pathlib's would raise for a name that is too long
            raise ConfigError(f"pretrained {pretrained!r} of {model} is neither a file nor one of the tags {tags}.")
        return model, Path(pretrained).resolve(), model_cfg, {}
    try:
        weights = download_pretrained(tag_cfg)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"The weights {model}/{pretrained} cannot be downloaded ({reason}); check the network or give a file."
        ) from None
    return model, Path(weights), model_cfg, tag_cfg


def resolve(backbone: Backbone, max_pixels: int = MAX_PIXELS) -> ClipSpec:
    """Find, hash and check a backbone without loading it; it is to see images of so many pixels at most.

    Raises:
        ConfigError: see `find_weights`; the weights are damaged; or weights and activation function do not fit.
    """
    source, weights, model_cfg, published = find_weights(backbone)
    digest, weights_bytes = _check_weights(weights, backbone)
    preprocess = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), published))
    size = model_cfg["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    how = (preprocess.interpolation, preprocess.resize_mode, preprocess.fill_color)
    return ClipSpec(
        backbone=_absolute(backbone),
        source=source,
        weights_sha256=digest,
        model_cfg=json.dumps(model_cfg, sort_keys=True),
        geometry=Geometry(height, width, *how, max_pixels),
        mean=_rgb(preprocess.mean),
        std=_rgb(preprocess.std),
        quick_gelu=_quick_gelu(backbone, model_cfg, published),
        weights_bytes=weights_bytes,
    )


def _absolute(backbone: Backbone) -> Backbone:
    """Workers stand in other folders, so relative places are made absolute."""
    changes: dict[str, str] = {}
    if backbone.model.startswith("local-dir:"):
        changes["model"] = f"local-dir:{Path(backbone.model.removeprefix('local-dir:')).resolve()}"
    elif backbone.pretrained and Path(backbone.pretrained).is_file():
        changes["pretrained"] = str(Path(backbone.pretrained).resolve())
    return backbone.model_copy(update=changes)


def _rgb(value: Any) -> tuple[float, float, float]:
    r, g, b = value if isinstance(value, tuple | list) else (value,) * 3
    return float(r), float(g), float(b)


def _quick_gelu(backbone: Backbone, model_cfg: dict[str, Any], published: dict[str, Any]) -> bool:
    """Whether the weights were trained with QuickGELU: a mismatch costs several points of accuracy silently.

    A pretrained tag says it. A weights file does not, so where the model has weights of both kinds it must be said.
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


def _check_weights(weights: Path, backbone: Backbone) -> tuple[str, int]:
    """SHA-256 of the weights and what they take in fp32 [bytes]; refuses what an actor would die of.

    Of safetensors the header is read, and it must fit the file's size; of other files only what tells TorchScript.
    """
    try:
        script, digest, size = _is_torchscript(weights), sha256(weights), _weights_bytes(weights)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile, SafetensorError) as error:
        raise ConfigError(
            f"The weights {str(weights)!r} of {backbone.model} cannot be read ({error}); save or download them again."
        ) from None
    if script:
        raise ConfigError(
            f"The weights {str(weights)!r} are a TorchScript archive, which can run code; use the pretrained tag "
            f"(`openai`) or save the state_dict as safetensors."
        )
    return digest, size


def _is_torchscript(weights: Path) -> bool:
    """True for archives that open_clip cannot load safely."""
    if not zipfile.is_zipfile(weights):
        return False
    with zipfile.ZipFile(weights) as archive:
        return any("/code/" in name for name in archive.namelist())


def _weights_bytes(weights: Path) -> int:
    """What the weights take in fp32 [bytes]: by the header of safetensors; other files are taken to be fp32."""
    if weights.suffix != ".safetensors":
        size = weights.stat().st_size
        if not size:
            raise ValueError("the file is empty")
        return size
    with safe_open(weights, framework="numpy") as file:
        return sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            model_cfg, _ = read_model_config((Path(identifier) / FILE).read_bytes())
            bpe_path = model_cfg["text_cfg"].get("tokenizer_kwargs", {}).get("bpe_path")
            options = {"bpe_path": str(Path(identifier) / bpe_path)} if bpe_path else {}
        return open_clip.get_tokenizer(source, **options)
    except (OSError, ValueError, EOFError, zlib.error, ImportError) as error:
        raise ConfigError(f"The tokenizer of {source!r} cannot be read ({error}); mend the model's folder.") from None
