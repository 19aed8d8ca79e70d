"""Manifests: text, CSV, JSON-lines or Parquet files that name images, and may say their labels and versions.

A relative name is looked up beside the manifest. An absolute one must lie below `corpus.roots`, so that a manifest from
elsewhere cannot make the job read what it was not meant to.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow.fs as pafs

from upl_ray.addresses import flaw
from upl_ray.archives import BYTES_COLUMNS, LABEL_COLUMNS, as_text, bytes_column
from upl_ray.config import ConfigError
from upl_ray.sources import Found, first_line
from upl_ray.storage import PARQUET_ERRORS, open_filesystem, open_parquet

URI_COLUMNS = ("uri", "url", "path", "image", "image_path", "filepath", "filename", "file_name", "file")
ID_COLUMNS = ("image_id", "id", "key")
VERSION_COLUMNS = ("version", "etag", "md5", "sha256")


class Named(NamedTuple):
    """One image of a manifest."""

    file: str
    version: str
    label: str | None


def read_manifest(fs: pafs.FileSystem, path: str, folder: str, roots: tuple[str, ...]) -> dict[str, Named]:
    """Image id -> where it lies, which version, which label. The id is the name as written, or a column `image_id`.

    Args:
        fs: where the manifest lies.
        path: the manifest inside `fs`.
        folder: absolute address of the manifest's folder.
        roots: folders and prefixes that absolute names may point into.

    Raises:
        ConfigError: not readable as what its suffix says, no column of addresses, a doubled id, or a forbidden address.
    """
    try:
        records = _records(fs, path)
    except ConfigError:
        raise
    except (ValueError, RecursionError, csv.Error, *PARQUET_ERRORS) as error:
        raise ConfigError(f"The manifest {path!r} cannot be read ({first_line(error)}); mend it.") from None
    found: dict[str, Named] = {}
    for number, record in enumerate(records, 1):
        name = _first(record, URI_COLUMNS)
        if name is None:
            raise ConfigError(
                f"Row {number} of the manifest {path!r} names no image; it needs a column {' or '.join(URI_COLUMNS)}."
            )
        image_id = _first(record, ID_COLUMNS) or name
        if image_id in found:
            raise ConfigError(f"The manifest {path!r} names {image_id!r} twice (row {number}); remove one of them.")
        file = _checked(name, folder, roots, f"row {number} of the manifest {path!r}")
        version = _first(record, VERSION_COLUMNS) or (name if name != image_id else "")  # else another file is unseen
        found[image_id] = Named(file, version, _first(record, LABEL_COLUMNS))
    if not found:
        raise ConfigError(f"The manifest {path!r} names no image; add at least one.")
    return found


def names_images(found: Found) -> bool:
    """True if Parquet files hold addresses of images; judged by the first one.

    Raises:
        ConfigError: it holds neither bytes nor addresses.
    """
    fs, root = open_filesystem(found.root)
    with fs.open_input_file(f"{root}/{min(found.files)}") as file:
        columns = open_parquet(file, min(found.files)).schema_arrow
    if bytes_column(columns):
        return False
    if not set(columns.names) & set(URI_COLUMNS):
        raise ConfigError(
            f"{min(found.files)!r} under {found.root!r} has no column of image bytes "
            f"({', '.join(BYTES_COLUMNS)}) or addresses ({', '.join(URI_COLUMNS)}); "
            f"its columns are {', '.join(columns.names)}."
        )
    return True


def _records(fs: pafs.FileSystem, path: str) -> list[dict[str, Any]]:
    with fs.open_input_file(path) as file:
        if path.endswith(".parquet"):
            columns = [*URI_COLUMNS, *ID_COLUMNS, *VERSION_COLUMNS, *LABEL_COLUMNS]
            parquet = open_parquet(file, path)
            names = parquet.schema_arrow.names
            rows: list[dict[str, Any]] = parquet.read([c for c in columns if c in names]).to_pylist()
            return rows
        text = file.read().decode("utf-8-sig")  # with or without a byte order mark
    if path.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(text)))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if path.endswith(".txt"):
        return [{"uri": line} for line in lines]
    records = [json.loads(line) for line in lines]
    for record in records:
        json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair, which no file's name may hold
    if not all(isinstance(r, dict) for r in records):
        raise ValueError('every line should be an object such as {"uri": "a.jpg"}')
    return records


def _first(record: dict[str, Any], columns: tuple[str, ...]) -> str | None:
    return next((text for c in columns if (text := as_text(record.get(c)))), None)


def _checked(name: str, folder: str, roots: tuple[str, ...], where: str) -> str:
    """The name as a path below the manifest's folder, or as an address below one of the roots."""
    found = flaw(name)
    if found:
        raise ConfigError(f"An address in {where} {found}.")
    if "\0" in name:
        raise ConfigError(f"{name!r} in {where} holds a null character; no file has such a name.")
    if any(part.strip() == ".." for part in (_parts(name) if "://" in folder + name else name.split("/"))):
        raise ConfigError(f"{name!r} in {where} holds `..`; write the address without it.")
    absolute = "://" in name or name.startswith("/")
    if not absolute:
        return name
    allowed = [_slash(folder), *(_slash(r if "://" in r else str(Path(r).expanduser().resolve())) for r in roots)]
    if not any(name.startswith(root) for root in allowed):
        parent = name.rpartition("/")[0]
        raise ConfigError(
            f"{name!r} in {where} lies outside of {folder!r}; if it may be read, say so: corpus.roots: [{parent}]."
        )
    return name


def _parts(address: str) -> list[str]:
    """What lies between its slashes for who undoes escapes, drops white space, or takes a backslash for a slash."""
    for _ in range(3):  # escapes of escapes
        address = unquote(address)
    return re.split(r"[/\\?#]", re.sub(r"[\t\r\n]", "", address))


def _slash(root: str) -> str:
    return root.rstrip("/") + "/"
