"""Images inside tar archives (WebDataset) and Parquet files: found once, then read in as few requests as possible.

Nothing is ever unpacked to disk: a member is a range of bytes, so its name cannot lead anywhere.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.fs as pafs

from upl_ray import schema
from upl_ray.config import ConfigError
from upl_ray.images import EXTENSIONS
from upl_ray.sources import first_line, sub_folder
from upl_ray.storage import PARQUET_ERRORS, open_parquet
from upl_ray.web import too_large

BUFFER = 2**20  # bytes of one request while a tar's headers are read
GAP = 2**18  # a hole between two members up to this is read along: cheaper than another request
LONGEST = 2**25  # bytes of one request for members
BYTES_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "img", "content", "data")
LABEL_COLUMNS = ("label", "class", "cls", "classname")

# What Python's tarfile raises on damaged headers.
TAR_ERRORS = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError, SystemError, MemoryError)
# Lengths of members that are never read, and why.
SPARSE, LINK = -1, -2
UNREAD = {
    SPARSE: "sparse member of a tar archive",  # it may claim a million times its bytes
    LINK: "link in a tar archive",  # it may lead anywhere
}

Row = tuple[str, str | None, int, int | None]  # name inside the archive, label, offset, length


def index_tar(fs: pafs.FileSystem, path: str) -> list[Row]:
    """The images of a tar archive, from its headers.

    Labels come from `.cls`, or `.json`'s `label`, of the same key, or else from the first folder.

    Raises:
        ConfigError: it is no tar archive, or a damaged one.
    """
    images: dict[str, Row] = {}
    labels: dict[str, str] = {}
    try:
        with (
            fs.open_input_file(path) as file,
            io.BufferedReader(file, BUFFER) as buffered,
            tarfile.open(fileobj=buffered, mode="r:") as tar,
        ):
            for member in _forwards(tar, file):
                # Names of other encodings than UTF-8 are shown as `caf\\xe9.jpg`; a member is read by its place.
                name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace").removeprefix("./")
                folder, _, base = name.rpartition("/")
                key = f"{folder}/{base.partition('.')[0]}"
                link = member.islnk() or member.issym()
                if not (member.isfile() or link) or base.startswith("."):
                    continue
                if name.lower().endswith(EXTENSIONS):  # a later one of a name replaces it
                    size = LINK if link else SPARSE if member.issparse() else member.size
                    images[name] = (key, None, member.offset_data, size)
                elif name.endswith((".cls", ".json")) and member.size < BUFFER and not (link or member.issparse()):
                    content = tar.extractfile(member)
                    assert content is not None
                    label = _label(content.read(), name.endswith(".json"))
                    if label is not None:
                        labels[key] = label
    except TAR_ERRORS as error:
        reason = first_line(error)
        raise ConfigError(f"{path!r} is no tar archive, or damaged ({reason}); repair or remove it.") from None
    return [(name, labels.get(key, sub_folder(name)), offset, size) for name, (key, _, offset, size) in images.items()]


def _forwards(tar: tarfile.TarFile, file: pa.NativeFile) -> Iterator[tarfile.TarInfo]:
    """The members, each behind the one before, up to the end.

    A negative size would send Python's tarfile round in a circle, and what is no header it takes for the end.
    """
    size = file.size()
    for member in tar:
        if member.size < 0 or not member.offset < tar.offset <= size + tarfile.BLOCKSIZE:  # where the next one begins
            raise tarfile.ReadError(f"wrong size of the member at byte {member.offset}")
        yield member
    if tar.offset < size and any(file.read_at(tarfile.BLOCKSIZE, tar.offset)):
        raise tarfile.ReadError(f"no header at byte {tar.offset}")


def _label(content: bytes, is_json: bool) -> str | None:
    try:
        text = content.decode().strip()
        if not is_json:
            return text
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = next((value[c] for c in LABEL_COLUMNS if c in value), None) if isinstance(value, dict) else None
    return as_text(found)


def as_text(value: object) -> str | None:
    """A cell of a table as text. A column of whole numbers with gaps comes as floats: 3.0 is `3`, a gap is None."""
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    return None if value is None else str(value).encode(errors="backslashreplace").decode()  # JSON may hold half a pair


def index_parquet(fs: pafs.FileSystem, path: str) -> list[Row]:
    """The rows of a Parquet file with image bytes; labels from its column `label`, if there is one.

    Raises:
        ConfigError: it is no Parquet file, a damaged one, or has no column of image bytes.
    """
    with fs.open_input_file(path) as file:
        parquet = open_parquet(file, path)
        if bytes_column(parquet.schema_arrow) is None:
            raise no_bytes(path, parquet.schema_arrow)
        column = next((c for c in LABEL_COLUMNS if c in parquet.schema_arrow.names), None)
        rows = parquet.metadata.num_rows
        try:
            labels = parquet.read([column])[column].to_pylist() if column else [None] * rows
        except PARQUET_ERRORS as error:
            raise ConfigError(f"Column {column!r} of {path!r} is damaged ({first_line(error)}); repair it.") from None
    return [(str(i), as_text(label), i, None) for i, label in enumerate(labels)]


def no_bytes(path: str, columns: pa.Schema) -> ConfigError:
    """The error of a Parquet file that holds no images."""
    return ConfigError(
        f"{path!r} has no column of image bytes ({', '.join(BYTES_COLUMNS)}); "
        f"its columns are {', '.join(columns.names)}."
    )


def bytes_column(names: pa.Schema) -> str | None:
    """The column that holds image bytes: binary, or Hugging Face's struct of bytes and path."""
    binary = {f.name for f in names if _is_binary(f.type)}
    named = [c for c in BYTES_COLUMNS if c in binary]
    return named[0] if named else (binary.pop() if len(binary) == 1 else None)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_tar(fs: pafs.FileSystem, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes | str]:
    """The members at these (offset, length), in the given order; neighbours come in one request."""
    found: dict[tuple[int, int], bytes | str] = {}
    with fs.open_input_file(path) as file:
        for group in _neighbours(sorted(set(ranges))):
            first = group[0][0]
            data = file.read_at(group[-1][0] + group[-1][1] - first, first)
            for offset, length in group:
                member = data[offset - first : offset - first + length]
                found[offset, length] = member if len(member) == length else "truncated archive"
    return [found[r] for r in ranges]


def _neighbours(ranges: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    groups: list[list[tuple[int, int]]] = []
    for offset, length in ranges:
        if groups:
            first, (last, size) = groups[-1][0][0], groups[-1][-1]
            if offset - (last + size) <= GAP and offset + length - first <= LONGEST:
                groups[-1].append((offset, length))
                continue
        groups.append([(offset, length)])
    return groups


def read_parquet(fs: pafs.FileSystem, path: str, rows: Sequence[int], max_bytes: int) -> list[bytes | str]:
    """The image bytes of these rows, in the given order; a reason instead of more than `max_bytes`.

    Row groups are read from their beginning, but row by row: a value that is stored once may stand in all of them.
    """
    found: dict[int, bytes | str] = {}
    wanted = set(rows)
    with fs.open_input_file(path) as file:
        parquet = open_parquet(file, path)
        column = bytes_column(parquet.schema_arrow)
        if column is None:
            raise no_bytes(path, parquet.schema_arrow)
        first = 0
        for group in range(parquet.num_row_groups):
            behind = first + parquet.metadata.row_group(group).num_rows
            here = sorted(wanted.intersection(range(first, behind)))
            if here:
                batches = parquet.iter_batches(1, [group], [column])
                for i, batch in zip(range(first, here[-1] + 1), batches, strict=False):
                    if i in wanted:
                        found[i] = _cell(batch.column(0), max_bytes)
            first = behind
    return [found.get(i, "missing row") for i in rows]


def _cell(column: pa.Array, max_bytes: int) -> bytes | str:
    """The only value of a column, if it is there and not too large."""
    value = column[0]
    if pa.types.is_struct(column.type) and value.is_valid:
        value = value["bytes"]
    if not value.is_valid:
        return "no bytes in this row"
    data = value.as_buffer()
    return too_large(max_bytes) if data.size > max_bytes else data.to_pybytes()


def listing_table(prefix: str, file: str, version: str, rows: Sequence[Row]) -> pa.Table:
    """Rows of `schema.LISTING` for the images of one archive: ids are `<archive>!<name inside>`."""
    return pa.Table.from_pylist(
        [
            {
                "image_id": f"{prefix}{file}!{name}",
                "version": version,
                "label": label,
                "file": file,
                "offset": offset,
                "length": length,
            }
            for name, label, offset, length in rows
        ],
        schema=schema.LISTING,
    )
