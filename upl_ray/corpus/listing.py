"""Every file below a folder or prefix, with its version, and a count of what was found there and left out.

The version of a file is its size and modification time, or a fingerprint where fsspec knows one.
"""

from __future__ import annotations

import errno
import heapq
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import pyarrow.fs as pafs

from upl_ray.errors import ConfigError, first_line
from upl_ray.storage.store import UNREACHABLE, open_filesystem

DANGLING = "dangling link"
LISTED = "link to what is listed already, or to a folder above"
NOT_UTF8 = "name that is not UTF-8"
SPECIAL = "pipe, socket or device"
SLASH = "name that begins with a slash"
SYSTEM = "folder of a system"
# With copies, deleted files and thumbnails, of macOS, Windows, Linux, of Synology's, QNAP's and NetApp's storage, and
# Nextcloud's.
SYSTEM_FOLDER = re.compile(
    r"__MACOSX|\$RECYCLE\.BIN|System Volume Information|FOUND\.\d{3}|lost\+found|@eaDir|#recycle|#snapshot|"
    r"@Recycle|@Recently-Snapshot|~snapshot|@tmp|@SynoResource|@sharebin|RECYCLE[RD]|Network Trash Folder|"
    r"Temporary Items|DfsrPrivate|appdata_\w+",
    re.IGNORECASE,
)
RESULTS = "folder of results (storage_path)"
ESCAPED = "surrogateescape"  # of bytes that are not UTF-8, in real paths
SHOWN = 8  # reasons in a log line
NO_TARGET = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
STORAGE = re.compile(r"(?:(.+)/)?corpus-[0-9a-f]{12}/manifest\.json")  # in every storage of the jobs
# Names that file systems give to a fingerprint of the content, or else to a time.
VERSION_FIELDS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)

Out = TypeVar("Out")
LeftOutRecord = tuple[str, str, int]  # reason, one name, count: the arguments of `LeftOut.add`


@dataclass
class LeftOut:
    """Files and folders that were found and do not count: how many, and one of them, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count one more, or some, of which `name` is one."""
        self.counts[reason] += count
        self.examples.setdefault(reason, name)

    def records(self) -> list[LeftOutRecord]:
        """The counts, to be kept as JSON."""
        return [(reason, self.examples[reason], n) for reason, n in self.counts.items()]

    def merge(self, other: LeftOut) -> None:
        """Count those of another listing, too."""
        self.counts += other.counts
        self.examples = other.examples | self.examples

    def __str__(self) -> str:
        """`12 x .heic (a/b.heic), 1 x dangling link (c.jpg)`, the most frequent first; empty if there is none."""
        shown = [f"{n} x {reason} ({self.examples[reason]})" for reason, n in self.counts.most_common(SHOWN)]
        others = len(self.counts) - len(shown)
        return ", ".join([*shown, *[f"{others} other suffixes"] * bool(others)])


@dataclass
class Listing:
    """The files below a folder."""

    files: dict[str, str] = field(default_factory=dict)  # path relative to the folder -> version
    left_out: LeftOut = field(default_factory=LeftOut)
    links: dict[str, str] = field(default_factory=dict)  # of them, links to files -> real path
    folders: dict[str, str] = field(default_factory=dict)  # real path of what was listed -> its place, `` or `link/`

    def drop_doubles(self, files: dict[str, str], counts: Callable[[str], bool]) -> dict[str, str]:
        """Those of some files that are no links to others of them which count by their names.

        A store that names files by their content (`blobs/3f2a`) is behind the links, and does not replace them.
        """
        doubles, targets = set(), set()
        for link, target in sorted(self.links.items()):
            if link not in files:
                continue
            name = self._name_of(target)
            if target in targets or (name in files and name not in self.links and counts(name)):
                self.left_out.add(LISTED, link)
                doubles.add(link)
            targets.add(target)
        return {f: v for f, v in files.items() if f not in doubles} if doubles else files

    def _name_of(self, target: str) -> str:
        """The name that a file of this real path would have in the listing; empty if it lies elsewhere."""
        folder = target
        while folder.strip("/"):
            folder = os.path.dirname(folder)
            if folder in self.folders:
                return f"{self.folders[folder]}{target[len(folder) :].lstrip('/')}"
        return ""

    def drop_results(self, own: str) -> None:
        """Leave out the folder of results `own` (empty: none), and those that earlier runs wrote beside the images."""
        names = {found[1] for file in self.files if (found := STORAGE.fullmatch(file)) and found[1]} | {own} - {""}
        tops = tuple(f"{name}/" for name in names)
        inside = {f for f in self.files if f.startswith(tops)} if tops else set()
        for name in sorted(names):
            if any(f.startswith(f"{name}/") for f in inside):
                self.left_out.add(RESULTS, name)
        self.files = {f: v for f, v in self.files.items() if f not in inside}


class _Folder(NamedTuple):
    """A local folder that is still to be listed, or a link to one."""

    place: str  # in the listing: ``, or `a/b/`
    path: str  # real, or that of the link in a real folder
    above: frozenset[str]  # real paths above the listed folder, and above all that links led to on the way


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it lies in, has a name that begins with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def is_of_system(name: str) -> bool:
    """Whether a file lies in a folder where systems keep copies and thumbnails."""
    return any(map(_is_system_folder, name.split("/")))


@lru_cache(4096)  # of a prefix, the same few folders stand before every name
def _is_system_folder(name: str) -> bool:
    return SYSTEM_FOLDER.fullmatch(name) is not None


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def list_files(folder: str) -> Listing:
    """Every file below a folder or prefix; in local folders without hidden ones.

    Raises:
        ConfigError: it is a folder of a web server.
        OSError: it does not exist or cannot be reached; see also `UNREACHABLE`.
    """
    with foreign_errors():
        fs, root = open_filesystem(folder)
    if isinstance(fs, pafs.LocalFileSystem):
        return _list_local(root or "/")
    with foreign_errors():
        if not isinstance(fs, pafs.PyFileSystem):
            infos = stoppable(lambda: fs.get_file_info(pafs.FileSelector(root, recursive=True)))
            found = {i.path: _size_and_time(i) for i in infos if i.type == pafs.FileType.File}
        else:
            found = _list_fsspec(fs.handler.fs, root, folder)
    listing = Listing()
    for path, version in found.items():
        name = path[len(root) :].removeprefix("/")
        if is_of_system(name):
            listing.left_out.add(SYSTEM, name)
        elif name.startswith("/"):  # of a key with `//`; to pyarrow it would be the file without
            listing.left_out.add(SLASH, name)
        else:
            listing.files[name] = version
    return listing


def _list_fsspec(remote: Any, root: str, folder: str) -> dict[str, str]:
    if "http" in str(remote.protocol):
        raise ConfigError(
            f"A web server lists no folders, and {folder!r} is none of its archives or images; name its files in a "
            f"manifest, for example a text file with one address a line, with roots: [{folder}] beside the uri."
        )
    details: dict[str, dict[str, Any]] = remote.find(root, detail=True, withdirs=False)
    if not details and not remote.exists(root):
        raise FileNotFoundError(f"there is no {folder}")
    return {p: _version(info) for p, info in details.items() if info["type"] == "file" and len(p) > len(root)}


def _list_local(root: str) -> Listing:
    """Files of a local folder: real folders first, then what links lead to, each real folder once.

    So links in a circle come to an end. Written in Python, it can be stopped between two files.
    """
    root = os.path.realpath(root)
    listing = Listing(folders={root: ""})
    seen: set[str] = set()  # real paths of folders
    folders, links = [_Folder("", root, _parents(root))], list[_Folder]()
    while folders or links:
        if folders:
            folder = folders.pop()
        else:
            folder = heapq.heappop(links)
            real = os.path.realpath(folder.path.encode(errors=ESCAPED)).decode(errors=ESCAPED)
            folder = folder._replace(path=real, above=folder.above | _parents(real))
            if real not in seen and real not in folder.above:
                listing.folders[real] = folder.place
        if folder.path in seen or folder.path in folder.above:
            listing.left_out.add(LISTED, folder.place.rstrip("/"))
            continue
        seen.add(folder.path)
        try:
            _list_folder(listing, folder, folders, links)
        except FileNotFoundError:
            if not folder.place:
                raise  # others were deleted in between
    return listing


def _parents(path: str) -> frozenset[str]:
    return frozenset(str(p) for p in PurePosixPath(path).parents)


def _list_folder(listing: Listing, folder: _Folder, folders: list[_Folder], links: list[_Folder]) -> None:
    """Put the files of a folder into the listing, and its folders to those that are still to be listed."""
    with os.scandir(folder.path.encode(errors=ESCAPED)) as entries:  # names are UTF-8, whatever the locale
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            name, path = f"{folder.place}{entry.name.decode(errors='backslashreplace')}", os.fsencode(entry.path)
            try:
                own = entry.name.decode()
                if entry.is_dir():
                    if _is_system_folder(own):
                        listing.left_out.add(SYSTEM, name)
                        continue
                    more = _Folder(f"{name}/", path.decode(errors=ESCAPED), folder.above)
                    heapq.heappush(links, more) if entry.is_symlink() else folders.append(more)
                    continue
                info = entry.stat()
            except UnicodeDecodeError:
                listing.left_out.add(NOT_UTF8, name)
                continue
            except OSError as error:
                if error.errno not in NO_TARGET:
                    raise
                if entry.is_symlink():  # else it was deleted in between
                    listing.left_out.add(DANGLING, name)
                continue
            if not stat.S_ISREG(info.st_mode):
                listing.left_out.add(SPECIAL, name)
                continue
            listing.files[name] = f"{info.st_size}-{info.st_mtime_ns}"
            if entry.is_symlink():
                listing.links[name] = os.path.realpath(path).decode(errors=ESCAPED)


def file_version(uri: str) -> str:
    """Version of one file; raises as `list_files`."""
    with foreign_errors():
        fs, path = open_filesystem(uri)
        if isinstance(fs, pafs.PyFileSystem):
            return _version(fs.handler.fs.info(path))
        info = fs.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(f"there is no file {uri}")
        return _size_and_time(info)


@contextmanager
def foreign_errors() -> Iterator[None]:
    """Errors of the libraries behind fsspec (`httpx.ConnectError` of hf://, ...) as OSError."""
    try:
        yield
    except UNREACHABLE:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {first_line(error)}") from error


def stoppable(call: Callable[[], Out]) -> Out:
    """The result of a long call into C++: in the main thread it would hold back signals until it returns."""
    future: Future[Out] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  # it is raised where the result is waited for
            future.set_exception(error)

    Thread(target=run, name="listing", daemon=True).start()
    return future.result()


def place_of_results(store_uri: str, folder: str) -> str | None:
    """Where the storage of a run lies in a folder or prefix: relative to it, empty if they are one; None: outside."""
    fs, root = open_filesystem(folder)
    own_fs, own = open_filesystem(store_uri)
    if isinstance(fs, pafs.LocalFileSystem):
        own, root = os.path.realpath(own), os.path.realpath(root or "/")
    if type(own_fs) is not type(fs) or not is_below(own, root):
        return None
    return own[len(root) :].lstrip("/")


def _size_and_time(info: pafs.FileInfo) -> str:
    return f"{info.size}-{info.mtime_ns or 0}"


def _version(info: dict[str, Any]) -> str:
    mark = next((info[field] for field in VERSION_FIELDS if info.get(field)), 0)
    return f"{info.get('size', 0)}-{str(mark).strip(chr(34))}"


def count_suffixes(files: Iterable[str], left_out: LeftOut) -> None:
    """Count files by suffix."""
    for file in files:
        left_out.add(os.path.splitext(file)[1].lower() or "without suffix", file)
