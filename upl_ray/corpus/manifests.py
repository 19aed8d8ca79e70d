"""Manifests: text, CSV, JSON-lines or Parquet files that name images, and may give their labels and versions.

A relative name lies beside the manifest. An absolute one must lie below the manifest's folder or `corpus.roots`: a
manifest from elsewhere cannot make the job read other files.
"""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any
from urllib.parse import unquote

import pyarrow.fs as pafs

from upl_ray.config import redact
from upl_ray.corpus.archives import BYTES_COLUMNS, LABEL_COLUMNS, as_text, bytes_column
from upl_ray.corpus.find import Found, ImageFile
from upl_ray.errors import ConfigError, first_line
from upl_ray.storage.store import PARQUET_ERRORS, absolute, open_filesystem, open_parquet

URI_COLUMNS = ("uri", "url", "path", "image", "image_path", "filepath", "filename", "file_name", "file")
ID_COLUMNS = ("image_id", "id", "key")
VERSION_COLUMNS = ("version", "etag", "md5", "sha256")


def names_images(found: Found) -> bool:
    """True if Parquet files hold addresses of images, False if they hold bytes; the first file decides.

    Raises:
        ConfigError: the first file holds neither.
    """
    fs, root = open_filesystem(found.root)
    with fs.open_input_file(f"{root}/{min(found.files)}") as file:
        columns = open_parquet(file, min(found.files)).schema_arrow
    if bytes_column(columns):
        return False
    if not set(columns.names) & set(URI_COLUMNS):
        raise ConfigError(
            f"{min(found.files)!r} under {found.root!r} has no column of image bytes or addresses among its columns "
            f"{', '.join(columns.names)}; add one that is named {' or '.join(BYTES_COLUMNS)} for bytes, "
            f"{' or '.join(URI_COLUMNS)} for addresses."
        )
    return True


def read_manifests(found: Found, roots: tuple[str, ...]) -> dict[str, ImageFile]:
    """Image id -> file, of all manifests at an address.

    Raises:
        ConfigError: see `read_manifest`; two manifests share an id; one of `roots` is not a path.
    """
    fs, root = open_filesystem(found.root)
    try:
        allowed = tuple(absolute(r) for r in roots)
    except ConfigError as error:
        raise ConfigError(f"roots: {error}") from None
    images: dict[str, ImageFile] = {}
    for file in sorted(found.files):
        more = read_manifest(fs, f"{root}/{file}", found.root, allowed)
        doubled = next((i for i in more if i in images), None)
        if doubled is not None:
            raise ConfigError(f"Two manifests under {found.root!r} name {doubled!r}; remove one of them.")
        images |= more
    return images


def read_manifest(fs: pafs.FileSystem, path: str, folder: str, roots: tuple[str, ...]) -> dict[str, ImageFile]:
    """Image id -> file, of one manifest. The id is the name as written, or a column `image_id`.

    Args:
        fs: file system of the manifest.
        path: the manifest inside `fs`.
        folder: absolute address of the manifest's folder.
        roots: absolute folders and prefixes that absolute names may point into.

    Raises:
        ConfigError: the manifest cannot be read, has no column of addresses, an id twice, or a forbidden address.
    """
    try:
        records = _records(fs, path)
    except ConfigError:
        raise
    except (ValueError, RecursionError, csv.Error, *PARQUET_ERRORS) as error:
        raise ConfigError(f"The manifest {path!r} cannot be read ({first_line(error)}); repair it.") from None
    images: dict[str, ImageFile] = {}
    for number, record in enumerate(records, 1):
        name = _first(record, URI_COLUMNS)
        if name is None:
            raise ConfigError(
                f"Row {number} of the manifest {path!r} names no image; it needs a column {' or '.join(URI_COLUMNS)}."
            )
        image_id = _first(record, ID_COLUMNS) or name
        if image_id in images:
            raise ConfigError(f"The manifest {path!r} names {image_id!r} twice (row {number}); remove one of them.")
        _check_name(name, folder, roots, f"row {number} of the manifest {path!r}")
        # Without a version, an id that moves to another file is another image.
        version = _first(record, VERSION_COLUMNS) or (name if name != image_id else "")
        images[image_id] = ImageFile(name, version, _first(record, LABEL_COLUMNS))
    if not images:
        raise ConfigError(f"The manifest {path!r} names no image; add at least one.")
    return images


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
        json.dumps(record, ensure_ascii=False).encode()  # raises on half of a surrogate pair, which no name may hold
    if not all(isinstance(r, dict) for r in records):
        raise ValueError('every line must be an object such as {"uri": "a.jpg"}')
    return records


def _first(record: dict[str, Any], columns: tuple[str, ...]) -> str | None:
    return next((text for c in columns if (text := as_text(record.get(c)))), None)


def _check_name(name: str, folder: str, roots: tuple[str, ...], where: str) -> None:
    """Refuse a name that leads out of the manifest's folder and the roots, or that no address may be."""
    problem = redact.find_flaw(name)
    if problem:
        raise ConfigError(f"An address in {where} {problem}.")
    # Web clients undo escapes, drop white space and take a backslash for a slash.
    if ".." in re.split(r"[/\\?#]", "".join(unquote(unquote(name)).split())):
        raise ConfigError(f"{name!r} in {where} holds `..`; write the address without it.")
    if "://" not in name and not name.startswith("/"):
        return
    if not any(name.startswith(f"{root.rstrip('/')}/") for root in (folder, *roots)):
        parent = name.rpartition("/")[0]
        raise ConfigError(
            f"{name!r} in {where} lies outside of {folder!r}; to allow it, set roots: [{parent}] beside the uri."
        )
