"""Manifests: text, CSV, JSON-lines or Parquet files that name images, and may give their labels and versions.

A relative name lies beside the manifest. An absolute one must lie below the manifest's folder or `corpus.roots`: a
manifest from elsewhere cannot make the job read other files.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import string
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from upl_ray.config import redact
from upl_ray.corpus.archives import (
    BYTES_COLUMNS,
    LABEL_COLUMNS,
    SHOWN,
    as_text,
    bytes_column,
    class_names,
    describe_columns,
    label_column,
    label_text,
)
from upl_ray.corpus.find import Found, ImageFile
from upl_ray.errors import LONGEST_VALUE, ConfigError, first_line, quoted
from upl_ray.storage.store import PARQUET_ERRORS, absolute, open_filesystem, open_parquet

log = logging.getLogger(__name__)

# Files here go before addresses elsewhere, of which they may be the copies.
URI_COLUMNS = ("uri", "path", "image_path", "filepath", "file_path", "filename", "file_name", "file", "image", "url")
ID_COLUMNS = ("image_id", "id", "key")
BASE64 = re.compile("[A-Za-z0-9+/]{200,}={0,2}")  # a path of that length has dots
LONGEST_FOLDER = 255  # letters of a folder that an error proposes
VERSION_COLUMNS = ("version", "etag", "md5", "sha256")
COUNTED = frozenset((*URI_COLUMNS, *ID_COLUMNS, *VERSION_COLUMNS, *LABEL_COLUMNS))


def names_images(found: Found) -> bool:
    """True if Parquet files hold addresses of images, False if they hold bytes; the first file decides.

    Raises:
        ConfigError: the first file holds neither.
    """
    fs, root = open_filesystem(found.root)
    with fs.open_input_file(f"{root}/{min(found.files)}") as file:
        columns = open_parquet(file, min(found.files)).schema_arrow
    of_bytes, names = bytes_column(columns), [f.name for f in columns if f.name in URI_COLUMNS and _is_text(f.type)]
    if of_bytes and names and of_bytes not in BYTES_COLUMNS and not pa.types.is_struct(columns.field(of_bytes).type):
        raise ConfigError(
            f"{min(found.files)!r} under {found.root!r} has bytes in {quoted(of_bytes)} and addresses in "
            f"{quoted(names[0])}; leave one of them out, or call bytes of images `image`."
        )
    if of_bytes:
        return False
    if not names:
        raise ConfigError(
            f"{min(found.files)!r} under {found.root!r} has no column of image bytes or addresses among its columns "
            f"{describe_columns(columns)}; add one of type binary that is named {' or '.join(BYTES_COLUMNS)}, with "
            f"files such as JPEG (no pixels), or one of text that is named {' or '.join(URI_COLUMNS)}, with addresses."
        )
    return True


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


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
            raise ConfigError(f"Two manifests under {found.root!r} name {quoted(doubled)}; remove one of them.")
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
        records = _parquet_records(fs, path) if path.lower().endswith(".parquet") else text_records(fs, path)
    except ConfigError:
        raise
    except (ValueError, RecursionError, csv.Error, *PARQUET_ERRORS) as error:
        raise ConfigError(f"The manifest {path!r} cannot be read: {first_line(error)}; correct it.") from None
    images: dict[str, ImageFile] = {}
    for number, record in enumerate(records, 1):
        where = f"row {number} of the manifest {path!r}"
        name = next((v for c in URI_COLUMNS if isinstance(v := record.get(c), str) and v), None)
        if name is None:
            raise ConfigError(
                f"R{where[1:]} names no image in its columns {_describe(record)}; it needs a column of text that is "
                f"named {' or '.join(URI_COLUMNS)}."
            )
        if BASE64.fullmatch(name) or ";base64," in name[:LONGEST_VALUE]:
            raise ConfigError(
                f"{quoted(name)} in {where} is an image in base64 and no address; write its bytes into a file of its "
                f"own or a Parquet column of type binary."
            )
        image_id = _first(record, ID_COLUMNS) or name
        if image_id in images:
            given = next((c for c in ID_COLUMNS if _first(record, (c,))), "")
            column = f" in its column {given!r}" if given else ""
            remedy = "remove one of them" + (", or rename the column if it does not tell images apart" if given else "")
            raise ConfigError(f"The manifest {path!r} names {quoted(image_id)} twice{column} (row {number}); {remedy}.")
        file = _checked_place(name, folder, roots, where)
        # Without a version, an id that moves to another file is another image.
        version = _first(record, VERSION_COLUMNS) or (name if name != image_id else "")
        images[image_id] = ImageFile(file, version, _first(record, LABEL_COLUMNS))
    if not images:
        raise ConfigError(f"The manifest {path!r} names no image; add at least one.")
    addresses = (image.file if "://" in image.file else os.path.join(folder, image.file) for image in images.values())
    places = {address if "://" in address else os.path.normpath(address) for address in addresses}
    again = len(images) - len(places)
    if again:  # as in a table with a row for each object in an image
        log.warning("%-12s %d rows of %s name a file again under another id: it counts as often", "images", again, path)
    return images


def text_records(fs: pafs.FileSystem, path: str) -> list[dict[str, Any]]:
    """Rows of a CSV or JSON-lines file, or the lines of any other as `uri`.

    Raises:
        ValueError, csv.Error, RecursionError: it is damaged.
    """
    kind = path.lower().rpartition(".")[2]
    with fs.open_input_file(path) as file:
        data = file.read()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16, as some tables are exported; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start + 1}); save it in that encoding") from None
    if kind == "csv":
        return _csv_records(text)
    # Nothing else ends a line: JSON may hold U+2028 and U+0085.
    lines = [line for part in text.split("\n") if (line := part.strip(string.whitespace))]
    if kind == "txt":
        return [{"uri": line} for line in lines]
    records = [json.loads(line) for line in lines]
    for record in records:
        json.dumps(record, ensure_ascii=False).encode()  # raises on half of a surrogate pair, which no name may hold
    if not all(isinstance(r, dict) for r in records):
        raise ValueError('every line must be an object such as {"uri": "a.jpg"}')
    return records


def _csv_records(text: str) -> list[dict[str, Any]]:
    """Rows by the names of their columns, blanks around these left out.

    Raises:
        ValueError: the first line names no columns, or they are parted by something else than commas; two that count
            have one name; or a row has more cells than there are columns.
        csv.Error: a quote is not closed, so that the rows behind it would be one cell.
    """
    if "\n" not in text.strip() and "\r" in text.strip():
        raise ValueError("its lines end at carriage returns; save it with line feeds")
    first = text.partition("\n")[0]
    if text.strip() and re.match(r"\s*(#[^,]*|sep=.?)?$", first):
        raise ValueError(f"its first line, {first.strip()!r}, names no columns; remove it")
    if "," not in first and (found := re.search(r"[;\t|]", first)):
        raise ValueError(f"its columns are parted by {found[0]!r}; save it with commas")
    reader = csv.DictReader(io.StringIO(text), strict=True)
    names = [name.strip() for name in reader.fieldnames or []]
    doubled = next((name for name in names if name in COUNTED and names.count(name) > 1), None)
    if doubled is not None:
        raise ValueError(f"it has two columns {doubled!r}; remove one of them")
    reader.fieldnames = names
    records: list[dict[str, Any]] = []
    for record in reader:  # cells beyond the columns may be blank, as spreadsheets write them, and whole rows
        beyond = record.pop(None, [])
        if not any(cell and cell.strip() for cell in [*beyond, *record.values()]):
            continue
        if any(cell.strip() for cell in beyond):
            raise ValueError(
                f"row {len(records) + 1} has more cells than columns; put cells that hold commas in quotes"
            )
        records.append({name: cell for name, cell in record.items() if cell is not None})  # a row may be short
    return records


def _parquet_records(fs: pafs.FileSystem, path: str) -> list[dict[str, Any]]:
    """Rows of the columns that count; those of addresses hold texts, and the label is called `label`."""
    with fs.open_input_file(path) as file:
        parquet = open_parquet(file, path)
        columns = parquet.schema_arrow
        label = label_column(columns)
        chosen = [f.name for f in columns if f.name in URI_COLUMNS and _is_text(f.type)]
        chosen += [f.name for f in columns if f.name in (*ID_COLUMNS, *VERSION_COLUMNS)]
        rows: list[dict[str, Any]] = parquet.read([*chosen, *[label] * bool(label)]).to_pylist()
    names = class_names(columns, label) if label else []
    return [{**row, "label": label_text(row[label], names)} for row in rows] if label else rows


def _first(record: dict[str, Any], columns: tuple[str, ...]) -> str | None:
    """The first of some columns that holds a text or a number."""
    cells = (record.get(c) for c in columns)
    return next((text for cell in cells if not isinstance(cell, list | dict | bytes) and (text := as_text(cell))), None)


def _describe(record: dict[str, Any]) -> str:
    """Names of a row's columns, and the kinds of their values where these are no texts."""
    kinds = {k: "" if isinstance(v, str) else f" ({type(v).__name__})" for k, v in list(record.items())[:SHOWN]}
    return ", ".join(f"{quoted(k)}{kind}" for k, kind in kinds.items())


def _checked_place(name: str, folder: str, roots: tuple[str, ...], where: str) -> str:
    """The file that a name stands for: relative to the folder, or an absolute address.

    Raises:
        ConfigError: it leads out of the manifest's folder and the roots, or no address may be like that.
    """
    place = unquote(name.removeprefix("file://")) if name.startswith("file:///") else name
    problem = redact.find_flaw(name) or redact.find_flaw(place)
    if problem:
        raise ConfigError(f"An address in {where} {problem}.")
    # Web clients undo escapes, drop white space and take a backslash for a slash.
    if ".." in re.split(r"[/\\?#]", "".join(unquote(unquote(name)).split())):
        raise ConfigError(f"{quoted(name)} in {where} holds `..`; write the address without it.")
    if "://" not in name and not name.startswith("/"):
        return re.sub(r"^(\./)+", "", name)
    tops = [f"{top.removeprefix('file://').rstrip('/')}/" for top in (folder, *roots)]
    if not any(place.startswith(top) or _real(place).startswith(top) for top in tops):
        parent = place.rpartition("/")[0]
        remedy = f"set roots: [{parent}] beside the uri" if len(parent) <= LONGEST_FOLDER else "set roots"
        raise ConfigError(f"{quoted(name)} in {where} lies outside of {folder!r}; to allow it, {remedy}.")
    return place


def _real(place: str) -> str:
    """A local file by the real path of its folder: the folder of a manifest, and roots, are real paths, too."""
    if not place.startswith("/"):
        return place
    folder, _, name = place.rpartition("/")
    return f"{_real_folder(folder)}/{name}"


@lru_cache(1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder or "/").rstrip("/")
