"""What lies at the address of a corpus: a folder of images, tar or Parquet archives, or a manifest that names images.

The form is found out from the address and from what lies there. Versions tell a file from its successor: size and ETag
in object stores, size and modification time elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow.fs as pafs
from botocore.exceptions import BotoCoreError

from upl_ray.artifacts import open_filesystem, open_fsspec
from upl_ray.config import ConfigError
from upl_ray.images import EXTENSIONS

Form = Literal["images", "tar", "parquet", "manifest"]
SUFFIXES: dict[Form, tuple[str, ...]] = {
    "images": EXTENSIONS,
    "tar": (".tar",),
    "parquet": (".parquet",),
    "manifest": (".txt", ".csv", ".jsonl"),
}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.zst", ".tar.xz", ".zip")
# What file systems call a fingerprint of the content, or else a time.
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
# What file systems raise on addresses that cannot be opened, read or (NotImplementedError) written.
UNREACHABLE = (OSError, ValueError, ImportError, NotImplementedError, BotoCoreError)


@dataclass(frozen=True)
class Found:
    """The files of one form at one address."""

    root: str
    form: Form
    files: dict[str, str]  # file relative to the root -> version


def find(uri: str) -> Found:
    """List an address: a folder or prefix, one file, or a pattern such as `s3://bucket/shards/*.tar`.

    Raises:
        ConfigError: it does not exist, cannot be reached, holds nothing that can be read, or several forms at once.
    """
    if uri.lower().endswith(COMPRESSED):
        raise ConfigError(f"{uri!r} is compressed, and its images cannot be reached one by one; unpack it to .tar.")
    try:
        folder, pattern, is_file = _split(uri)
        files = {pattern: file_version(uri)} if is_file else list_files(folder)
    except UNREACHABLE as error:
        raise ConfigError(
            f"The images under {uri!r} cannot be listed ({first_line(error)}); check the address and the access."
        ) from None
    visible = {f: v for f, v in files.items() if not any(part.startswith(".") for part in f.split("/"))}
    if pattern:
        visible = {f: v for f, v in visible.items() if is_file or fnmatch(f, pattern)}
    by_form = {form: {f: v for f, v in visible.items() if f.lower().endswith(SUFFIXES[form])} for form in SUFFIXES}
    if not pattern:
        by_form["manifest"] = {}  # a text file beside images is no manifest: one is named itself
    present: list[Form] = [form for form, of_form in by_form.items() if of_form]
    if not present:
        raise ConfigError(
            f"No image lies under {uri!r}; files ending in {' '.join(EXTENSIONS)} are looked for, tar and Parquet "
            f"archives of them, or name a manifest (.txt, .csv, .jsonl)."
        )
    if len(present) > 1:
        raise ConfigError(
            f"{uri!r} holds {' and '.join(f'{len(by_form[f])} {f} files' for f in present)}; "
            f"say which by a pattern, for example {folder}/*{SUFFIXES[present[0]][0]}."
        )
    return Found(folder, present[0], by_form[present[0]])


def _split(uri: str) -> tuple[str, str, bool]:
    """The folder to list; the pattern that files must match, empty for all; whether it is the name of one file."""
    scheme, separator, path = uri.rpartition("://")
    parts = path.rstrip("/").split("/")
    wild = next((i for i, part in enumerate(parts) if re.search(r"[*?]", part)), None)
    known = tuple(s for suffixes in SUFFIXES.values() for s in suffixes)
    is_file = wild is None and parts[-1].lower().endswith(known) and (bool(separator) or not Path(path).is_dir())
    first = len(parts) - 1 if is_file else wild
    if first is None:
        return uri.rstrip("/") or "/", "", False
    return f"{scheme}{separator}{'/'.join(parts[:first])}" or "/", "/".join(parts[first:]), is_file


def file_version(uri: str) -> str:
    """Version of one file; raises as `list_files`."""
    if "://" in uri and not uri.startswith("file://"):
        return _version(open_fsspec(uri).info(open_filesystem(uri)[1]))
    fs, path = open_filesystem(uri)
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise FileNotFoundError(f"there is no file {uri}")
    return f"{info.size}-{info.mtime_ns or 0}"


def list_files(folder: str) -> dict[str, str]:
    """Every file below a folder or prefix: path relative to it -> version.

    Raises:
        OSError: it does not exist or cannot be reached; see also `UNREACHABLE`.
    """
    scheme = folder.partition("://")[0] if "://" in folder else ""
    if scheme in ("", "file"):
        fs, root = open_filesystem(folder)
        infos = fs.get_file_info(pafs.FileSelector(root, recursive=True))
        files = [i for i in infos if i.type == pafs.FileType.File]
        return {i.path[len(root) :].lstrip("/"): f"{i.size}-{i.mtime_ns or 0}" for i in files}
    remote = open_fsspec(folder)
    _, root = open_filesystem(folder)  # its reading of escapes in the address counts, since images are read through it
    details: dict[str, dict[str, Any]] = remote.find(root, detail=True, withdirs=False)
    if not details and not remote.exists(root):
        raise FileNotFoundError(f"there is no {folder}")
    return {
        path[len(root) :].lstrip("/"): _version(info)
        for path, info in details.items()
        if info["type"] == "file" and len(path) > len(root)
    }


def _version(info: dict[str, Any]) -> str:
    mark = next((info[field] for field in VERSION_FIELDS if info.get(field)), 0)
    return f"{info.get('size', 0)}-{str(mark).strip(chr(34))}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without the full stop."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def sub_folder(image_id: str) -> str | None:
    """The first folder of a path, which may be its true class."""
    parts = PurePosixPath(image_id).parts
    return parts[0] if len(parts) > 1 else None
