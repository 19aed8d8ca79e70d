"""A folder, local or in object storage: whole files that appear at once or not at all, and tables in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO, TypeVar
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from upl_ray.errors import ConfigError, Damaged, first_line

IO_THREADS = 16  # requests in flight when many small files are read; object stores answer in 10-50 ms each
URI_CHARACTERS = "%:/?@!$&'()*+,;=~"  # what may stand in a URI as it is; pyarrow refuses blanks and umlauts
HADOOPS_S3 = re.compile("^s3[an]://")  # other names of the same storage, which pyarrow does not know
# What the names of Ray's Arrow types begin with: plain, and in base64 from each of the three places in a group.
RAY_TYPES = (b"ray.data.", b"cmF5LmRhdGEu", b"JheS5kYXRhL", b"yYXkuZGF0YS")
PARQUET_ERRORS = (pa.ArrowException, ValueError, OSError)  # what Arrow raises on damaged files
# What file systems raise on addresses that cannot be opened, read or (NotImplementedError) written.
UNREACHABLE = (OSError, ValueError, ImportError, NotImplementedError)
DIGITS = 32  # hex digits of a hash in a file name: 128 bits
GCS_RETRY = timedelta(seconds=15)  # pyarrow would try for a quarter of an hour, also where credentials are missing
S3_RETRIES = 8  # of a request that S3 refuses for now; the pauses double from 25 ms to 3.2 s: 6.4 s in all

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Store:
    """A folder, local or in object storage; only its URI travels between processes."""

    uri: str

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.uri,)  # a worker opens its own connection, with its own credentials

    @cached_property
    def _target(self) -> tuple[pafs.FileSystem, str]:
        return open_filesystem(self.uri)

    @property
    def is_local(self) -> bool:
        """True for a folder of this machine."""
        return isinstance(self._target[0], pafs.LocalFileSystem)

    def path(self, name: str) -> str:
        """Path of `name` inside the store's file system."""
        return f"{self._target[1]}/{name}"

    def join(self, name: str) -> str:
        """URI of `name` in this store, to show to people and to open elsewhere."""
        return f"{self.uri.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._target[0].open_input_file(self.path(name)) as file:
            return bytes(file.read(file.size()))  # one request, where a stream makes one for each 256 KiB

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file at once: readers see all of it or nothing, also after a kill."""
        fs, path = self._target[0], self.path(name)
        if not self.is_local:  # an object appears when its upload completes
            with fs.open_output_stream(path, compression=None) as stream:
                stream.write(data)
            return
        with _complete(Path(path)) as temporary:
            temporary.write_bytes(data)

    @contextmanager
    def open_text(self, name: str) -> Iterator[TextIO]:
        """Write a file that may not fit into memory; it appears when it is complete."""
        fs, path = self._target[0], self.path(name)
        if not self.is_local:  # from a whole file here: an upload that is closed early would look like one
            with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as text:
                yield text
                text.flush()
                text.seek(0)
                with fs.open_output_stream(path, compression=None) as stream:
                    shutil.copyfileobj(text.buffer, stream, 2**23)
            return
        with _complete(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="") as text:
            yield text

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files right in `folder`; empty if there is no such folder."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        infos = self._target[0].get_file_info(selector)
        return sorted(i.base_name for i in infos if i.type == pafs.FileType.File and not i.base_name.endswith(".tmp"))

    def folders(self) -> list[str]:
        """Sorted names of the folders right in the store."""
        infos = self._target[0].get_file_info(pafs.FileSelector(self._target[1], allow_not_found=True))
        return sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory)

    def names_below(self, folder: str) -> list[str]:
        """Sorted names, relative to `folder`, of all files in it and in its folders."""
        root = self.path(folder)
        infos = self._target[0].get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        files = (i.path[len(root) + 1 :] for i in infos if i.type == pafs.FileType.File)
        return sorted(f for f in files if not f.endswith(".tmp"))

    def delete(self, name: str) -> None:
        """Delete a file; none is no error."""
        if self.is_local:
            Path(self.path(name)).unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            self._target[0].delete_file(self.path(name))  # in S3 pyarrow leaves an empty object for the folder

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file.

        Raises:
            FileNotFoundError: there is no such file.
            Damaged: it holds no JSON object.
        """
        try:
            return dict(json.loads(self.read(name)))
        except (ValueError, TypeError, RecursionError):
            raise damaged(self.join(name)) from None

    def write_json(self, name: str, value: Any) -> Any:
        """Write JSON atomically; returns it as it will be read: tuples are lists, keys are text."""
        text = json.dumps(value, indent=1, sort_keys=True)
        self.write(name, f"{text}\n".encode())
        return json.loads(text)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file as a table."""
        return open_parquet(pa.BufferReader(self.read(name)), self.join(name)).read(columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as Parquet, atomically."""
        self.write(name, table_bytes(table))

    def write_hashed(self, stem: str, table: pa.Table) -> str:
        """Write a table as Parquet under a name that holds its hash; returns the name."""
        data = table_bytes(table)
        name = f"{stem}-{sha256(data)[:DIGITS]}.parquet"
        self.write(name, data)
        return name

    def read_hashed(self, name: str, columns: list[str] | None = None, remedy: str = "") -> pa.Table:
        """A table that `write_hashed` wrote.

        Args:
            name: its name.
            columns: those that are read; None: all.
            remedy: the file to delete where the table is damaged; empty: the table's own.

        Raises:
            Damaged: its content is not what was written, or it is gone.
        """
        found = re.search(rf"-([0-9a-f]{{{DIGITS}}})\.parquet$", name)
        data = self.read_checked(name, found[1] if found else "", remedy)
        return open_parquet(pa.BufferReader(data), self.join(name)).read(columns)

    def read_checked(self, name: str, digest: str, remedy: str = "") -> bytes:
        """A file whose SHA-256 begins with the digits that something else in storage names.

        Raises:
            Damaged: it does not, or the file is gone.
        """
        try:
            data = self.read(name)
        except FileNotFoundError:
            data = b""
        if not digest or not sha256(data).startswith(digest):
            raise damaged(self.join(name), self.join(remedy) if remedy else "")
        return data


def damaged(where: str, remedy: str = "") -> Damaged:
    """The error that names a damaged file and the file to delete, without which its work is done again."""
    return Damaged(
        f"{where} is damaged or gone. Delete {remedy or 'it'} and run the job again, which repeats that work."
    )


def sha256(data: bytes) -> str:
    """Hex digest of the content."""
    return hashlib.sha256(data).hexdigest()


def is_remote(uri: str) -> bool:
    """True for an address such as `s3://bucket/prefix`, False for a path of this machine."""
    return "://" in uri


def read_ahead(items: Iterable[In], read: Callable[[In], Out], depth: int = IO_THREADS) -> Iterator[Out]:
    """Results of `read` in order, of which at most `depth` wait: reading overlaps with work in bounded memory."""
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(depth) as pool:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A file to write into that becomes `path` when all is well, or else goes: it would keep a full disk full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk: say which
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def open_parquet(source: pa.NativeFile, where: str, piece: int = 0) -> pq.ParquetFile:
    """A Parquet file of plain Arrow types.

    Ray registers Arrow types that unpickle: values of one when they are read, and, where the environment allows old
    files, the metadata of others as soon as a file that claims to hold one is opened. So the claim is looked for in the
    footer, where Arrow's schema is text in base64, before Arrow sees it.

    Args:
        source: the file.
        where: its address, for errors.
        piece: bytes of a column that are read at once; 0: the whole column of a row group.

    Raises:
        ConfigError: the file claims to hold a type of Ray's, is no Parquet, or damaged.
    """
    size = source.size()
    try:
        source.seek(max(0, size - 8))
        length = int.from_bytes(source.read(4), "little")
        source.seek(max(0, size - 8 - length))
        footer = source.read(length)
    except ValueError as error:  # of fsspec, about a web server without ranges
        raise ConfigError(f"{where} cannot be read in parts ({first_line(error)}); copy it to another place.") from None
    if any(text in footer for text in RAY_TYPES):
        raise ConfigError(f"{where} holds a column of Ray's own types, which may carry code; write plain columns.")
    source.seek(0)
    try:
        return pq.ParquetFile(source, buffer_size=piece)
    except PARQUET_ERRORS as error:
        raise ConfigError(
            f"{where} is no Parquet file, or damaged ({first_line(error)}); repair or remove it."
        ) from None


def table_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def absolute(place: str) -> str:
    """A URI as it is, a path of this machine from its root on.

    Raises:
        ConfigError: its `~name` is nobody's folder, or its links lead in a circle.
    """
    if is_remote(place):
        return place
    try:
        return str(Path(place).expanduser().resolve())
    except RuntimeError as error:
        raise ConfigError(
            f"The path {place!r} cannot be followed ({str(error).rstrip('.')}); write it out in full."
        ) from None


def read_text(place: str) -> str:
    """A text file, local or in object storage, with or without a byte order mark.

    Raises:
        OSError, ValueError: it cannot be read, or is no UTF-8; see also `UNREACHABLE`.
    """
    folder, _, name = place.rpartition("/")
    data = Store(folder).read(name) if is_remote(place) else Path(absolute(place)).read_bytes()
    return data.decode("utf-8-sig")


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """File system and path of a local path or a URI: pyarrow's own where it has one (S3, local), else fsspec's."""
    if not is_remote(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    uri = HADOOPS_S3.sub("s3://", uri)
    try:
        fs, path = pafs.FileSystem.from_uri(quote(uri, safe=URI_CHARACTERS))
    except pa.ArrowInvalid as error:
        if "Unrecognized" not in str(error):  # such as a missing bucket
            raise
        # Listings are not remembered: the next run must see what is new.
        fsspec_fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True, **_http(uri))
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec_fs))
    if isinstance(fs, pafs.S3FileSystem):
        fs = _tuned_s3(fs)
    elif isinstance(fs, pafs.GcsFileSystem):
        fs = _with_options(fs, retry_time_limit=GCS_RETRY)
    return fs, path.rstrip("/")


def _http(uri: str) -> dict[str, Any]:
    """No redirects: a server that the configuration names cannot send the nodes to another one, or to metadata."""
    return {"allow_redirects": False} if uri.startswith(("http://", "https://")) else {}


def _tuned_s3(fs: pafs.FileSystem) -> pafs.FileSystem:
    """The same S3 with options that a URI cannot carry.

    Small files take one request instead of the three of a multi-part upload. An address that does not answer is an
    error after 6 s (nobody listens) to 35 s (silence); pyarrow's own retries take 6 s to 100 s.
    """
    retries = pafs.AwsDefaultS3RetryStrategy(max_attempts=S3_RETRIES)
    return _with_options(fs, allow_delayed_open=True, retry_strategy=retries)


def _with_options(fs: pafs.FileSystem, **options: Any) -> pafs.FileSystem:
    """The same file system, with options beside what pyarrow found in the URI and the environment."""
    rebuild, (found,) = fs.__reduce__()
    return rebuild({**found, **options})
