"""Reads a configuration: a YAML file, then typed overrides from the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro
import yaml
from pydantic import ValidationError

from upl_ray.config import Config, ConfigError, sentence


def load_config(args: list[str], default: Path) -> Config:
    """Read `[FILE.yaml] [--field value ...]`; without a file, `default`.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or a field in it is refused.
        SystemExit: status 2 where a command-line option is refused, 0 after `--help`.
    """
    path, rest = (Path(args[0]), args[1:]) if args and not args[0].startswith("-") else (default, args)
    if not path.is_file():
        raise ConfigError(f"The configuration file {str(path)!r} does not exist; name a YAML file such as {default}.")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in _keys(data)):
        raise ConfigError(f"{path} holds no `field: value` pairs; start from {default}.")
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {sentence(error)}") from None
    return tyro.cli(
        Config,
        default=config,
        config=(tyro.conf.FlagConversionOff,),
        args=rest,
        prog=f"{Path(sys.argv[0]).name} [CONFIG.yaml]",
        description=f"{Config.__doc__} Values shown are those of {path.name}.",
    )


def _keys(data: Any) -> Iterator[Any]:
    """All keys of nested mappings."""
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _keys(value)
    if isinstance(data, dict):
        yield from data
