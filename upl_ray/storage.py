"""A folder, local or in object storage: whole files that appear at once or not at all, and tables in them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError

from upl_ray import integrity
from upl_ray.section import ConfigError

IO_THREADS = 16  # requests in flight when many small files are read; object stores answer in 10-50 ms each
URI_CHARACTERS = "%:/?@!$&'()*+,;=~"  # what may stand in a URI as it is; pyarrow refuses blanks and umlauts
# What the names of Ray's Arrow types begin with: plain, and in base64 from each of the three places in a group.
RAY_TYPES = (b"ray.data.", b"cmF5LmRhdGEu", b"JheS5kYXRhL", b"yYXkuZGF0YS")
PARQUET_ERRORS = (pa.ArrowException, ValueError, OSError)  # what Arrow raises on damaged files
S3_RETRIES = 8  # of a request that S3 refuses for now; the pauses double from 25 ms to 3.2 s: 6.4 s in all


@dataclass(frozen=True)
class Store:
    """A folder, local or in object storage; only its URI travels between processes."""

    uri: str

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.uri,)  # a worker opens its own connection, with its own credentials

    @cached_property
    def _target(self) -> tuple[pafs.FileSystem, str]:
        return open_filesystem(self.uri)

    @cached_property
    def _fsspec(self) -> fsspec.AbstractFileSystem:
        return open_fsspec(self.uri)

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
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        Path(temporary).write_bytes(data)
        os.replace(temporary, path)

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
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(f"{path}.{uuid.uuid4().hex}.tmp")
        with temporary.open("w", encoding="utf-8", newline="") as text:
            yield text
        os.replace(temporary, path)

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
        else:  # pyarrow would put a directory marker where the last file of a prefix was
            try:
                self._fsspec.rm_file(self.path(name))
            except FileNotFoundError:
                pass
            except BotoCoreError as error:  # it does not answer
                raise OSError(str(error)) from None

    def read_json(self, name: str) -> Any:
        """Parsed JSON file."""
        return json.loads(self.read(name))

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        self.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def write_sealed(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Write JSON that holds its own place and hash; returns it as it will be read."""
        data = integrity.seal_json(value, name)
        self.write(name, data)
        return integrity.open_json(data, self.join(name), name)

    def read_sealed(self, name: str) -> dict[str, Any]:
        """JSON that `write_sealed` wrote.

        Raises:
            Damaged: it is not what was written there.
        """
        return integrity.open_json(self.read(name), self.join(name), name)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file as a table."""
        return open_parquet(pa.BufferReader(self.read(name)), self.join(name)).read(columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as Parquet, atomically."""
        self.write(name, table_bytes(table))

    def write_hashed(self, stem: str, table: pa.Table) -> str:
        """Write a table as Parquet under a name that holds its hash; returns the name."""
        data = table_bytes(table)
        name = integrity.hashed_name(stem, ".parquet", data)
        self.write(name, data)
        return name

    def read_hashed(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A table that `write_hashed` wrote.

        Raises:
            Damaged: its content is not what was written, or it is gone.
        """
        return open_parquet(pa.BufferReader(self.check_hashed(name)), self.join(name)).read(columns)

    def check_hashed(self, name: str) -> bytes:
        """The content of such a file; raises as `read_hashed`."""
        return integrity.check_name(name, self.read_named(name), self.join(name))

    def read_named(self, name: str) -> bytes:
        """A file that something in storage names.

        Raises:
            Damaged: it is gone.
        """
        try:
            return self.read(name)
        except FileNotFoundError:
            raise integrity.damaged(self.join(name)) from None


def open_parquet(source: pa.NativeFile, where: str) -> pq.ParquetFile:
    """A Parquet file of plain Arrow types.

    Ray registers Arrow types that unpickle: values of one when they are read, and, where the environment allows old
    files, the metadata of others as soon as a file that claims to hold one is opened. So the claim is looked for in the
    footer, where Arrow's schema is text in base64, before Arrow sees it.

    Raises:
        ConfigError: the file claims to hold a type of Ray's, is no Parquet, or damaged.
    """
    size = source.size()
    source.seek(max(0, size - 8))
    length = int.from_bytes(source.read(4), "little")
    source.seek(max(0, size - 8 - length))
    footer = source.read(length)
    if any(text in footer for text in RAY_TYPES):
        raise ConfigError(f"{where} holds a column of Ray's own types, which may carry code; write plain columns.")
    source.seek(0)
    try:
        return pq.ParquetFile(source)
    except PARQUET_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(f"{where} is no Parquet file, or damaged ({reason}); repair or remove it.") from None


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
    if "://" in place:
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
        OSError, ValueError: it cannot be read, or is no UTF-8; see also `sources.UNREACHABLE`.
    """
    folder, _, name = place.rpartition("/")
    data = Store(folder).read(name) if "://" in place else Path(absolute(place)).read_bytes()
    return data.decode("utf-8-sig")


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """File system and path of a local path or a URI: pyarrow's own where it has one (S3, local), else fsspec's."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), absolute(uri)
    try:
        fs, path = pafs.FileSystem.from_uri(quote(uri, safe=URI_CHARACTERS))
    except pa.ArrowInvalid as error:
        if "Unrecognized" not in str(error):  # such as a missing bucket
            raise
        fsspec_fs, path = fsspec.core.url_to_fs(uri, **_http(uri))
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec_fs))
    if isinstance(fs, pafs.S3FileSystem):
        fs = _tuned_s3(fs)
    return fs, path.rstrip("/")


def open_fsspec(uri: str) -> fsspec.AbstractFileSystem:
    """The same storage through fsspec, for what pyarrow does not do: tell ETags, delete without directory markers.

    Paths in it are those of `open_filesystem`. Listings are not remembered: the next run must see what is new. In S3 an
    address that does not answer is an error after half a minute; s3fs' own retries of botocore's take seven minutes.
    """
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if uri.startswith(("s3://", "s3a://")):
        once_more = {"mode": "standard", "max_attempts": 1}  # and all of it five times, by s3fs
        options["config_kwargs"] = {"connect_timeout": 3, "read_timeout": 3, "retries": once_more}
    return fsspec.core.url_to_fs(uri, **options, **_http(uri))[0]


def _http(uri: str) -> dict[str, Any]:
    """No redirects: a server that the configuration names cannot send the nodes to another one, or to metadata."""
    return {"allow_redirects": False} if uri.startswith(("http://", "https://")) else {}


def _tuned_s3(fs: pafs.S3FileSystem) -> pafs.S3FileSystem:
    """The same S3 with options that a URI cannot carry.

    Small files take one request instead of the three of a multi-part upload. An address that does not answer is an
    error after 6 s (nobody listens) to 35 s (silence); pyarrow's own retries take 6 s to 100 s.
    """
    rebuild, (options,) = fs.__reduce__()  # what pyarrow found in the URI and the environment, as keyword arguments
    retries = pafs.AwsDefaultS3RetryStrategy(max_attempts=S3_RETRIES)
    return rebuild({**options, "allow_delayed_open": True, "retry_strategy": retries})
