"""The bytes of listed images, wherever they lie: in files of their own, in tar archives or in Parquet files.

What is said about an image's own bytes is a reason to reject it, and stays. What is said about access to it, a refused
permission or a storage that does not answer, says nothing about the image: it stops the job, to be run again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from upl_ray import archives
from upl_ray.artifacts import IO_THREADS, open_filesystem
from upl_ray.images import Geometry
from upl_ray.section import JobError
from upl_ray.sources import first_line
from upl_ray.web import MISSING as MISSING
from upl_ray.web import is_web, read_web, too_large

LARGE = 2**24  # bytes of an image that is read alone; a chunk of 64 smaller ones is at most 1 GiB
LONGEST_KEY = 1024  # bytes of a name in S3
# No file can have such a name: a file is used as a folder, the name is too long, links go round in a circle.
NEVER_THERE = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def read_images(root: str, listing: pa.Table, max_bytes: int = Geometry(1, 1).max_bytes) -> list[bytes | str]:
    """Bytes of the images in rows of `schema.LISTING`, in order; a reason instead where one cannot be had.

    Files, members of tar archives and cells of Parquet files that are larger than `max_bytes` are left out.

    Raises:
        JobError: an image may not be read, or the storage does not answer; none of the files is there, and their folder
            is missing on this machine; or an archive is not the one that was listed.
    """
    rows = listing.to_pylist()
    try:
        found = _read_rows(root, rows, max_bytes)
    except PermissionError as error:
        raise JobError(
            f"There is no permission to read all images under {root} ({error}); grant it or remove what shall not be "
            f"read, and run the job again."
        ) from None
    except OSError as error:
        raise JobError(
            f"Images under {root} cannot be read now ({first_line(error)}); what is finished stays in storage, so run "
            f"the job again."
        ) from None
    if rows and all(f == MISSING for f in found) and _are_away(root, [r["file"] for r in rows]):
        raise JobError(
            f"None of {len(found)} listed images is found under {root} on this machine, for example "
            f"{rows[0]['image_id']}; every node must reach the same folder."
        )
    return found


def _are_away(root: str, files: list[str]) -> bool:
    """Whether the local folder of these files is not there, or empty, as one is that lost what was mounted on it."""
    places = [_address(root, file) for file in files]
    if not all(isinstance(fs, pafs.LocalFileSystem) for fs, _ in places):
        return False  # a server that says so knows
    try:
        with os.scandir(os.path.commonpath([os.path.dirname(path) for _, path in places])) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def read_each(root: str, listing: pa.Table, max_bytes: int = Geometry(1, 1).max_bytes) -> Iterator[bytes | str]:
    """The same as `read_images`, one by one: of images above `LARGE` only one is in memory at a time."""
    most = min(LARGE, max_bytes)
    for i, data in enumerate(read_images(root, listing, most)):
        yield read_images(root, listing.slice(i, 1), max_bytes)[0] if data == too_large(most) else data


def _read_rows(root: str, rows: list[dict[str, Any]], max_bytes: int) -> list[bytes | str]:
    found: list[bytes | str] = [MISSING] * len(rows)
    by_archive: dict[str, list[int]] = defaultdict(list)
    alone = []
    for i, row in enumerate(rows):
        if row["length"] in archives.UNREAD:
            found[i] = archives.UNREAD[row["length"]]
        elif (row["length"] or 0) > max_bytes:
            found[i] = too_large(max_bytes)
        elif row["offset"] is None:
            alone.append(i)
        else:
            by_archive[row["file"]].append(i)
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for i, data in zip(alone, pool.map(lambda i: _read_file(root, rows[i]["file"], max_bytes), alone), strict=True):
            found[i] = data
    for file, members in by_archive.items():
        for i, data in zip(members, _read_archive(root, file, [rows[i] for i in members], max_bytes), strict=True):
            found[i] = data
    return found


def _read_archive(root: str, file: str, rows: list[dict[str, Any]], max_bytes: int) -> list[bytes | str]:
    fs, path = _address(root, file)
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.File:
        if is_web(path) and read_web(fs.handler.fs, path, max_bytes=0) != MISSING:
            raise OSError(f"{path}: the server did not answer at first")
        raise JobError(
            f"{file} is not found under {root} on this machine. If it has gone since it was listed, run the job again; "
            f"every node must reach the same folder."
        )
    listed = rows[0]["version"]
    if str(info.size) != listed.partition("-")[0]:  # offsets of another version would give other images their names
        raise JobError(f"{file} under {root} has changed since it was listed; run the job again.")
    try:
        if rows[0]["length"] is None:
            return archives.read_parquet(fs, path, [r["offset"] for r in rows], max_bytes)
        return archives.read_tar(fs, path, [(r["offset"], r["length"]) for r in rows])
    except ValueError as error:  # of Arrow about a damaged Parquet file, or of fsspec about a server without parts
        raise JobError(
            f"{file} under {root} is damaged, or cannot be read in parts ({first_line(error)}); repair or remove it."
        ) from None


def _read_file(root: str, file: str, max_bytes: int) -> bytes | str:
    fs, path = _address(root, file)
    if is_web(path):
        return read_web(fs.handler.fs, path, max_bytes)
    if isinstance(fs, pafs.S3FileSystem) and len(path.partition("/")[2].encode()) > LONGEST_KEY:
        return MISSING
    try:
        if isinstance(fs, pafs.LocalFileSystem) and not stat.S_ISREG(os.stat(path).st_mode):
            return "not a file"  # a folder, or a pipe, which would be waited for
        with fs.open_input_file(path) as opened:  # its size is known: one request, not one for each 256 KiB
            size = opened.size()
            return bytes(opened.read(size)) if size <= max_bytes else too_large(max_bytes)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in NEVER_THERE:
            return MISSING
        raise


def _address(root: str, file: str) -> tuple[pafs.FileSystem, str]:
    file = file.removeprefix("file://")
    if "://" not in file:
        fs, folder = _filesystem(root)
        return (pafs.LocalFileSystem(), file) if file.startswith("/") else (fs, f"{folder}/{file}")
    scheme, _, rest = file.partition("://")
    host, _, path = rest.partition("/")
    fs, folder = _filesystem(f"{scheme}://{host}")
    return fs, f"{folder}/{path}" if folder else path


@cache
def _filesystem(root: str) -> tuple[pafs.FileSystem, str]:
    """Opening one costs a connection, and an image is a fraction of that."""
    return open_filesystem(root)
