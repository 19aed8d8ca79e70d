"""Images inside tar archives (WebDataset) and Parquet files: indexed once, then read in as few requests as possible.

Of a Parquet file whole row groups are read, from their beginning: rows in the middle of one cannot be found without.

Nothing is unpacked to disk: a member is a range of bytes, so its name cannot lead out of the archive.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from upl_ray.corpus.listing import SYSTEM, LeftOut, count_suffixes, is_hidden, is_of_system
from upl_ray.errors import LONGEST_VALUE, ConfigError, first_line, quoted
from upl_ray.storage import schema
from upl_ray.storage.store import PARQUET_ERRORS, open_parquet
from upl_ray.upl import rejection
from upl_ray.upl.images import EXTENSIONS

BUFFER = 2**20  # bytes of one request while a tar's headers are read
GAP = 2**18  # bytes between two members that are read along, which is cheaper than another request
LONGEST = 2**25  # bytes of one request for members
PIECE = 2**23  # bytes of one request for a column of a Parquet file, of which one is in memory, however long it is
BYTES_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "img", "content", "data")
SHOWN = 12  # columns that an error names
LABEL_COLUMNS = ("label", "class", "cls", "classname")

# Errors that Python's tarfile raises on damaged headers.
TAR_ERRORS = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError, SystemError, MemoryError)
# Lengths of members that are never read, and the reasons.
SPARSE, LINK = -1, -2
UNREAD_LABEL = "label that cannot be read"
REPLACED = "member that a later one of its name replaces"
UNREAD = {SPARSE: rejection.SPARSE_MEMBER, LINK: rejection.LINK_MEMBER}

Row = tuple[str, str | None, int, int | None]  # name inside the archive, label, offset, length


class Index(NamedTuple):
    """The images of an archive."""

    rows: list[Row]
    groups: list[int]  # how many of them, one lot after the other, are read together: row groups; in tar archives all
    left_out: LeftOut  # files of a tar archive


def cut(groups: list[int], size: int) -> Iterator[tuple[int, int]]:
    """(first, length) of shards of at most `size` rows, each of whole groups; a group that is larger is cut."""
    first, length = 0, 0
    for group in groups:
        if length and length + group > size:
            yield first, length
            first, length = first + length, 0
        length += group
        while length > size:
            yield first, size
            first, length = first + size, length - size
    if length:
        yield first, length


def index_tar(fs: pafs.FileSystem, path: str, suffix: str = "") -> Index:
    """The images of a tar archive, from its headers; also of several that were written one behind the other.

    Members belong together by WebDataset's rule: their names up to the first dot are equal, the key. A key has one
    image, and its label comes from `.cls`, or else from `label` in `.json`. Where names hold further dots
    (`cam.00.jpg`, `cam.00.cls`, `cam.01.jpg`), names up to the last dot are keys, unless the same words follow several
    keys (`0.left.jpg`, `0.right.jpg`, `1.left.jpg`, ...).

    Args:
        fs: file system of the archive.
        path: the archive inside `fs`.
        suffix: images are those members whose names go on with this behind the first dot; empty: all images.

    Raises:
        ConfigError: the file is no tar archive, or damaged; archives in it hold a name twice; or a key has several
            images, or several labels, and none can be chosen.
    """
    left_out = LeftOut()
    images: dict[str, tuple[int, int]] = {}  # name -> offset, size
    labels: dict[str, dict[str, str]] = {"json": {}, "cls": {}}  # name without its suffix -> label
    begins: dict[str, int] = {}  # name of an image or a label -> where its archive begins
    doubled: list[str] = []  # names of images and labels in two archives behind each other
    try:
        with fs.open_input_file(path) as file, io.BufferedReader(file, BUFFER) as buffered:
            for member, tar, start in _members(buffered, file.size()):
                # A name in another encoding than UTF-8 becomes `caf\\xe9.jpg`; members are read by their place.
                name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace").removeprefix("./")
                link = member.islnk() or member.issym()
                if not (member.isfile() or link) or is_hidden(name):
                    continue
                stem, _, kind = name.rpartition(".")
                is_image = name.lower().endswith(EXTENSIONS)
                if is_of_system(name) or not (is_image or kind.lower() in labels):
                    left_out.add(SYSTEM, name) if is_of_system(name) else count_suffixes([name], left_out)
                    continue
                label = None if is_image else _read_label(tar, member, name, left_out)
                before = None if is_image else labels[kind.lower()].pop(stem, None)
                if name in begins and (is_image or label is not None or before is not None):
                    if begins[name] < start:
                        doubled.append(name)
                    else:  # as `tar --update` writes it
                        left_out.add(REPLACED, name)
                begins[name] = start
                if is_image:
                    images[name] = member.offset_data, LINK if link else SPARSE if member.issparse() else member.size
                elif label is not None:
                    labels[kind.lower()][stem] = label
    except TAR_ERRORS as error:
        reason = first_line(error)
        raise ConfigError(f"{path!r} is no tar archive, or damaged ({reason}); repair or remove it.") from None
    _check_doubled(path, doubled, images)
    given = _labels_of_images(path, list(images), labels["json"] | labels["cls"], suffix)
    for name in images.keys() - given.keys():
        left_out.add(f".{_key(name)[1]}", name)
    rows: list[Row] = [(name, given[name], *place) for name, place in images.items() if name in given]
    return Index(rows, [len(rows)], left_out)  # may be cut anywhere


def _check_doubled(path: str, doubled: list[str], images: Iterable[str]) -> None:
    """Refuse names that two archives behind each other hold, of images and of their labels."""
    keys = {key for name in images for key in (_key(name)[0], name.rpartition(".")[0])} if doubled else set()
    found = next((name for name in doubled if not keys.isdisjoint((_key(name)[0], name.rpartition(".")[0]))), None)
    if found:
        raise ConfigError(
            f"{path!r} is made of archives of which two hold {quoted(found)}; leave them apart, or give their members "
            f"different names."
        )


def _labels_of_images(path: str, names: list[str], labels: dict[str, str], suffix: str) -> dict[str, str | None]:
    """Label, or None, of each image that counts; see `index_tar`."""
    images: dict[str, list[str]] = defaultdict(list)  # by key
    stems: dict[str, list[str]] = defaultdict(list)  # of labels, by key
    for name in names:
        key, rest = _key(name)
        if not suffix or rest.lower() == suffix.lower().lstrip("."):
            images[key].append(name)
    for stem in labels:
        stems[_key(stem)[0]].append(stem)
    rests = Counter(_key(name)[1] for several in images.values() if len(several) > 1 for name in several)
    parts = {rest for rest, keys in rests.items() if keys > 1 and not re.search(r"\d.*\.", rest)}  # left.png, no 01.png
    found: dict[str, str | None] = {}
    for key, several in images.items():
        own = {name: name.rpartition(".")[0] for name in several}
        apart = len(set(own.values())) == len(several) and key not in own.values()  # the names hold further dots
        apart &= parts.isdisjoint(_key(name)[1] for name in several) or set(own.values()) <= set(stems[key])
        if len(several) > 1 and not (apart and set(stems[key]) <= set(own.values())):
            raise ConfigError(
                f"{path!r} holds {len(several)} images of one key, {', '.join(map(quoted, sorted(several)[:3]))}; name "
                f"those to use by what stands behind the first dot of their names, for example corpus.suffix "
                f"{quoted(_key(min(several, key=lambda name: (len(name), name)))[1])}."
            )
        for name, stem in own.items():
            if stem not in labels and len(several) == 1 < len(stems[key]):
                given = ", ".join(map(quoted, sorted(stems[key])[:3]))
                raise ConfigError(f"{path!r} holds {len(stems[key])} labels for {quoted(name)}, of {given}; keep one.")
            found[name] = labels.get(stem, next((labels[s] for s in stems[key]), None) if len(several) == 1 else None)
    return found


def _key(name: str) -> tuple[str, str]:
    """The name of a member up to the first dot of its base, and what stands behind that dot."""
    folder, slash, base = name.rpartition("/")
    key, _, rest = base.partition(".")
    return f"{folder}{slash}{key}", rest


def _members(file: io.BufferedReader, size: int) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile, int]]:
    """The members, each behind the one before, up to the end of the file; with their archive, and where that begins.

    Python's tarfile follows a negative size backwards without end, and takes anything but a header for the end. Bytes
    behind the end mark are another archive (`cat a.tar b.tar`), or damage.
    """
    first: int | None = 0
    while first is not None:
        file.seek(first)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                behind = tar.offset  # where the next begins
                if member.size < 0 or not member.offset < behind <= size + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"wrong size of the member at byte {member.offset}")
                yield member, tar, first
            first = _next_block(file, tar.offset, size)
            if first == tar.offset:
                raise tarfile.ReadError(f"no header at byte {tar.offset}")


def _next_block(file: io.BufferedReader, offset: int, size: int) -> int | None:
    """Offset of the next block that holds anything but zeros; None if there is none."""
    file.seek(offset)
    for start in range(offset, size, BUFFER):
        piece = file.read(BUFFER)
        zeros = len(piece) - len(piece.lstrip(b"\0"))
        if zeros < len(piece):
            return start + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    return None


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, left_out: LeftOut) -> str | None:
    """The label in a member of some bytes, if it has one."""
    if member.size >= BUFFER or not member.isfile() or member.issparse():
        return None
    content = tar.extractfile(member)
    assert content is not None
    return _label(content.read(), name, left_out)


def _label(content: bytes, name: str, left_out: LeftOut) -> str | None:
    """The label in a `.cls` or `.json` file, if it has one; one that is not UTF-8 or no JSON is counted."""
    kind = name.lower().rpartition(".")[2]
    try:
        text = content.decode("utf-8-sig").strip()
        if kind == "cls":
            return text
        value = json.loads(text)
    except (ValueError, RecursionError):
        left_out.add(f"{UNREAD_LABEL} (.{kind})", name)
        return None
    found = next((value[c] for c in LABEL_COLUMNS if c in value), None) if isinstance(value, dict) else None
    return as_text(found)


def as_text(value: object) -> str | None:
    """A cell of a table as text; of a column of whole numbers with gaps, which is read as floats, 3.0 is `3`."""
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    return (
        None if value is None else str(value).encode(errors="backslashreplace").decode()
    )  # JSON may hold half of a surrogate pair


def index_parquet(fs: pafs.FileSystem, path: str) -> Index:
    """The rows of a Parquet file with image bytes, and their labels (see `label_column`).

    Raises:
        ConfigError: the file is no Parquet file, damaged, or has no column of image bytes.
    """
    with fs.open_input_file(path) as file:
        parquet = open_parquet(file, path)
        images = bytes_column(parquet.schema_arrow)
        if images is None:
            raise no_bytes(path, parquet.schema_arrow)
        if _is_empty(parquet.metadata, images):
            raise ConfigError(
                f"The column {images!r} of {path!r} holds no bytes in any row, perhaps only paths; write the images' "
                f"files into it (of Hugging Face's datasets: save to Parquet with the files embedded)."
            )
        column = label_column(parquet.schema_arrow)
        rows = parquet.metadata.num_rows
        try:
            labels = parquet.read([column])[column].to_pylist() if column else [None] * rows
        except PARQUET_ERRORS as error:
            raise ConfigError(f"Column {column!r} of {path!r} is damaged ({first_line(error)}); repair it.") from None
        groups = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        names = class_names(parquet.schema_arrow, column) if column else []
    return Index([(str(i), label_text(label, names), i, None) for i, label in enumerate(labels)], groups, LeftOut())


def label_column(columns: pa.Schema) -> str | None:
    """The column of labels: the first of `LABEL_COLUMNS` with texts or numbers, or else the only one of class names."""
    plain = [f.name for f in columns if not pa.types.is_nested(f.type) and not _is_binary(f.type)]
    named = [c for c in LABEL_COLUMNS if c in plain]
    others = [c for c in plain if class_names(columns, c)]
    return named[0] if named else others[0] if len(others) == 1 else None


def class_names(columns: pa.Schema, column: str) -> list[str]:
    """Names of the class numbers in a column, which Hugging Face's datasets keep in the metadata; empty without."""
    try:
        about = json.loads((columns.metadata or {})[b"huggingface"])
        names = about["info"]["features"][column]["names"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return [str(n) for n in names] if isinstance(names, list) else []


def label_text(value: object, names: Sequence[str]) -> str | None:
    """A cell of a column of labels as text: by its name where numbers have names, of which -1 is none."""
    if isinstance(value, float) and value.is_integer():  # a column with gaps
        value = int(value)
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None if value == -1 else str(value)
    return as_text(value)


def _is_empty(about: pq.FileMetaData, column: str) -> bool:
    """Whether a column has rows and all are known to be null: those of bytes, in Hugging Face's struct."""
    leaves = [about.row_group(g).column(c) for g in range(about.num_row_groups) for c in range(about.num_columns)]
    parts = [x for x in leaves if x.path_in_schema in (column, f"{column}.bytes")]
    counted = all(x.is_stats_set and x.statistics.has_null_count for x in parts)
    return about.num_rows > 0 and counted and sum(x.statistics.null_count for x in parts) == about.num_rows


def no_bytes(path: str, columns: pa.Schema) -> ConfigError:
    """The error of a Parquet file that holds no images."""
    return ConfigError(
        f"{path!r} has no column of image bytes among its columns {describe_columns(columns)}; "
        f"add one of type binary that is named {' or '.join(BYTES_COLUMNS)}, with files such as JPEG."
    )


def describe_columns(columns: pa.Schema) -> str:
    """Names and types of columns, for errors."""
    shown = [f"{f.name} ({f.type})" for f in columns][:SHOWN]
    return ", ".join(text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..." for text in shown)


def bytes_column(names: pa.Schema) -> str | None:
    """The column that holds image bytes: binary, or Hugging Face's struct of bytes and path."""
    binary = {f.name for f in names if _is_binary(f.type)}
    named = [c for c in BYTES_COLUMNS if c in binary]
    return named[0] if named else (binary.pop() if len(binary) == 1 else None)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def read_tar(fs: pafs.FileSystem, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes | str]:
    """The members at these (offset, length), in the given order; neighbours are read in one request."""
    found: dict[tuple[int, int], bytes | str] = {}
    with fs.open_input_file(path) as file:
        for group in _neighbours(sorted(set(ranges))):
            first = group[0][0]
            data = file.read_at(group[-1][0] + group[-1][1] - first, first)
            for offset, length in group:
                member = data[offset - first : offset - first + length]
                found[offset, length] = member if len(member) == length else rejection.CUT_ARCHIVE
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


def read_parquet(fs: pafs.FileSystem, path: str, rows: Sequence[int], max_bytes: int) -> Iterator[bytes | str]:
    """The image bytes of these rows, which ascend; a reason instead where a row holds more than `max_bytes`.

    Each row group that holds one of them is read once, up to the last of them, row by row: a value that is stored once
    may be that of every row.
    """
    with fs.open_input_file(path) as file:
        parquet = open_parquet(file, path, PIECE)
        column = bytes_column(parquet.schema_arrow)
        if column is None:
            raise no_bytes(path, parquet.schema_arrow)
        behind, at = 0, 0  # the first row behind the group; the next of `rows`
        for group in range(parquet.num_row_groups):
            first, behind = behind, behind + parquet.metadata.row_group(group).num_rows
            batches = enumerate(parquet.iter_batches(1, [group], [column]), first)
            while at < len(rows) and rows[at] < behind:
                batch = next((batch for row, batch in batches if row == rows[at]), None)
                yield rejection.MISSING_ROW if batch is None else _cell(batch.column(0), max_bytes)
                at += 1
        yield from [rejection.MISSING_ROW] * (len(rows) - at)


def _cell(column: pa.Array, max_bytes: int) -> bytes | str:
    """The only value of a column, or a reason."""
    value = column[0]
    if pa.types.is_struct(column.type) and value.is_valid:
        value = value["bytes"]
    if not value.is_valid:
        return rejection.NO_BYTES
    data = value.as_buffer()
    return rejection.too_many_bytes(max_bytes) if data.size > max_bytes else data.to_pybytes()


def listing_table(prefix: str, file: str, version: str, rows: Sequence[Row]) -> pa.Table:
    """Rows of `schema.LISTING` for the images of one archive; ids are `<archive>!<name inside>`."""
    names, labels, offsets, lengths = zip(*rows, strict=True) if rows else ((), (), (), ())
    ids = [f"{prefix}{file}!{name}" for name in names]
    return pa.table([ids, [version] * len(ids), labels, [file] * len(ids), offsets, lengths], schema=schema.LISTING)
