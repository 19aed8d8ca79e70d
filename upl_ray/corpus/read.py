"""Bytes of listed images: from single files, tar archives and Parquet files, local, in buckets, on web servers.

A fault of the image (missing, too large, not a file) is a reason to reject it, and is kept. A fault of the access (no
permission, a storage that does not answer) stops the job, which can be run again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from upl_ray.corpus import archives
from upl_ray.errors import JobError, first_line
from upl_ray.storage.store import IO_THREADS, open_filesystem
from upl_ray.upl.images import Geometry
from upl_ray.upl.rejection import MISSING, NO_FILE, NO_NAME, too_many_bytes

AHEAD = 64  # images that are read together
LARGE = 2**24  # bytes of an image that is read alone; 64 smaller ones are at most 1 GiB
LONGEST_KEY = 1024  # bytes of a name in S3
UNOPENED = {"", ".", ".."}  # parts of names that S3 may hold, and that pyarrow lists and refuses or normalises
# No file can have such a name: a file is used as a folder, the name is too long, links lead in a circle.
IMPOSSIBLE = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def read_images(root: str, listing: pa.Table, max_bytes: int = Geometry(1, 1).max_bytes) -> list[bytes | str]:
    """Bytes of the images in rows of `schema.LISTING`, in order; a reason instead where an image has none.

    Files, members of tar archives and cells of Parquet files that are larger than `max_bytes` are not read.

    Raises:
        JobError: an image may not be read, or the storage does not answer; all files are missing and their folder is
            missing or empty on this machine; an archive is missing, damaged, or has changed since it was listed.
    """
    rows, found = listing.to_pylist(), try_images(root, listing, max_bytes)
    if rows and all(f == MISSING for f in found) and _lost_mount(root, [r["file"] for r in rows]):
        raise JobError(
            f"None of {len(found)} listed images is found under {root} on this machine, for example "
            f"{rows[0]['image_id']}; every node must reach the same folder."
        )
    return found


def try_images(root: str, listing: pa.Table, max_bytes: int = Geometry(1, 1).max_bytes) -> list[bytes | str]:
    """The same as `read_images`, where a folder that is missing is no error."""
    with _in_one_sentence(root):
        return _read_rows(root, listing.to_pylist(), max_bytes)


def read_each(root: str, listing: pa.Table, max_bytes: int = Geometry(1, 1).max_bytes) -> Iterator[bytes | str]:
    """The same as `read_images` for rows of one shard, in bounded memory, however many they are.

    At most `AHEAD` images are in memory at a time, and of those above `LARGE`, or in a Parquet file, only one.
    """
    most = min(LARGE, max_bytes)
    row = next(iter(listing.slice(0, 1).to_pylist()), None)
    if row and _in_parquet(row):
        with _in_one_sentence(root):
            yield from _read_parquet(root, row, listing["offset"].to_pylist(), max_bytes)
        return
    for first in range(0, len(listing), AHEAD):
        some = listing.slice(first, AHEAD)
        for i, data in enumerate(read_images(root, some, most)):
            yield read_images(root, some.slice(i, 1), max_bytes)[0] if data == too_many_bytes(most) else data


@contextmanager
def _in_one_sentence(root: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise JobError(
            f"There is no permission to read all images under {root} ({error}); grant it or remove these images, and "
            f"run the job again."
        ) from None
    except OSError as error:
        raise JobError(
            f"Images under {root} cannot be read now ({first_line(error)}); finished work stays in storage, so run "
            f"the job again."
        ) from None


def find_forbidden(root: str, listing: pa.Table) -> list[str]:
    """Local files of some images that may not be read; object storage says it when they are read."""
    with _in_one_sentence(root):
        places = [_open(root, file) for file in dict.fromkeys(listing["file"].to_pylist())]
    local = [os.fsencode(path) for fs, path in places if isinstance(fs, pafs.LocalFileSystem)]
    return [os.fsdecode(path) for path in local if not os.access(path, os.R_OK) and os.path.lexists(path)]


def _lost_mount(root: str, files: list[str]) -> bool:
    """Whether the local folder of these files is missing or empty, as one is that lost its mount."""
    places = [_open(root, file) for file in files]
    if not all(isinstance(fs, pafs.LocalFileSystem) for fs, _ in places):
        return False  # the answer of a server is certain
    try:
        with os.scandir(os.path.commonpath([os.path.dirname(path) for _, path in places])) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _read_rows(root: str, rows: list[dict[str, Any]], max_bytes: int) -> list[bytes | str]:
    found: list[bytes | str] = [MISSING] * len(rows)
    by_archive: dict[str, list[int]] = defaultdict(list)
    single = []
    for i, row in enumerate(rows):
        if row["length"] in archives.UNREAD:
            found[i] = archives.UNREAD[row["length"]]
        elif (row["length"] or 0) > max_bytes:
            found[i] = too_many_bytes(max_bytes)
        elif row["offset"] is None:
            single.append(i)
        else:
            by_archive[row["file"]].append(i)
    with ThreadPoolExecutor(IO_THREADS) as pool:
        content = pool.map(lambda i: _read_file(root, rows[i]["file"], max_bytes), single)
        for i, data in zip(single, content, strict=True):
            found[i] = data
    for members in by_archive.values():
        for i, data in zip(members, _read_archive(root, [rows[i] for i in members], max_bytes), strict=True):
            found[i] = data
    return found


def _read_file(root: str, file: str, max_bytes: int) -> bytes | str:
    fs, path = _open(root, file)
    if _is_web(path):
        return _read_web(fs.handler.fs, path, max_bytes)
    if isinstance(fs, pafs.S3FileSystem):
        if len(path.partition("/")[2].encode()) > LONGEST_KEY:
            return MISSING
        if not UNOPENED.isdisjoint(path.split("/")):
            return NO_NAME
    try:
        if isinstance(fs, pafs.LocalFileSystem) and not stat.S_ISREG(os.stat(path).st_mode):
            return NO_FILE  # a folder, or a pipe, from which reading might never return
        with fs.open_input_file(path) as opened:  # its size is known: one request, not one for each 256 KiB
            size = opened.size()
            return bytes(opened.read(size)) if size <= max_bytes else too_many_bytes(max_bytes)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in IMPOSSIBLE:
            return MISSING
        if isinstance(fs, pafs.S3FileSystem):  # whose error names no key, and of one in Glacier at times no reason
            archived = any(text in str(error) for text in ("storage class", "ACCESS_DENIED"))
            hint = ", or it lies in Glacier and must be restored first" if archived else ""
            raise OSError(f"{path}: {first_line(error)}{hint}") from None
        raise


def _in_parquet(row: dict[str, Any]) -> bool:
    """True for a row of a Parquet file, which has a number and no length."""
    return row["offset"] is not None and row["length"] is None


def _read_archive(root: str, rows: list[dict[str, Any]], max_bytes: int) -> list[bytes | str]:
    """Images of one archive, in the order of the rows."""
    if _in_parquet(rows[0]):
        numbers = sorted({r["offset"] for r in rows})
        found = dict(zip(numbers, _read_parquet(root, rows[0], numbers, max_bytes), strict=True))
        return [found[r["offset"]] for r in rows]
    with _opened_archive(root, rows[0]) as (fs, path):
        return archives.read_tar(fs, path, [(r["offset"], r["length"]) for r in rows])


def _read_parquet(root: str, row: dict[str, Any], numbers: list[int], max_bytes: int) -> Iterator[bytes | str]:
    """Images of the Parquet file of a row, by ascending numbers."""
    with _opened_archive(root, row) as (fs, path):
        yield from archives.read_parquet(fs, path, numbers, max_bytes)


@contextmanager
def _opened_archive(root: str, row: dict[str, Any]) -> Iterator[tuple[pafs.FileSystem, str]]:
    """The archive of a row, which must be the one that was listed: offsets in another lead to other images."""
    file, (fs, path) = row["file"], _open(root, row["file"])
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.File:
        if _is_web(path) and _read_web(fs.handler.fs, path, max_bytes=0) != MISSING:
            raise OSError(f"{path}: the server did not answer at first")
        raise JobError(
            f"{file} is not found under {root} on this machine; run the job again if it was removed after it was "
            f"listed, else let every node reach the same folder."
        )
    if str(info.size) != row["version"].partition("-")[0]:
        raise JobError(f"{file} under {root} has changed since it was listed; run the job again.")
    try:
        yield fs, path
    except ValueError as error:  # from Arrow about a damaged Parquet file, from fsspec about a server without ranges
        raise JobError(
            f"{file} under {root} is damaged, or cannot be read in parts ({first_line(error)}); repair or remove it."
        ) from None


def _open(root: str, file: str) -> tuple[pafs.FileSystem, str]:
    """File system and path of a file: relative to the root, or an absolute address."""
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
    """Kept open: opening one costs a connection, which takes longer than reading an image."""
    return open_filesystem(root)


def _is_web(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _read_web(fs: HTTPFileSystem, url: str, max_bytes: int) -> bytes | str:
    """A file on a web server, or a reason: it is missing, or larger than `max_bytes`.

    fsspec's own reading does not tell a missing file from a server that refuses or fails. One request, whether or not
    the server names a length; redirects are not followed (see `storage.store`).

    Raises:
        PermissionError: the server refuses.
        OSError: the server cannot be reached, fails, breaks off, or redirects.
    """
    try:
        return sync(fs.loop, _get, fs, url, max_bytes)  # type: ignore[no-any-return]  # fsspec ships no types
    except aiohttp.ClientError as error:
        raise OSError(f"{url}: {str(error) or type(error).__name__}") from None


async def _get(fs: HTTPFileSystem, url: str, max_bytes: int) -> bytes | str:
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), **fs.kwargs) as answer:
        if answer.status in GONE:
            return MISSING
        if answer.status in REFUSED:
            raise PermissionError(f"{url}: the server answers {answer.status}")
        if answer.status != HTTPStatus.OK:  # a redirect too: it may lead to a login page, and only for today
            raise OSError(f"{url}: the server answers {answer.status}")
        body = bytearray()
        async for piece in answer.content.iter_chunked(2**20):
            body += piece
            if len(body) > max_bytes:
                return too_many_bytes(max_bytes)
        return bytes(body)
