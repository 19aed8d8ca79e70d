"""Files at an address of a corpus: a folder of images, tar or Parquet archives, or manifests that name images.

The address and the files there decide the form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import pyarrow.fs as pafs
from fsspec.utils import glob_translate

from upl_ray.corpus.listing import (
    LeftOut,
    Listing,
    count_suffixes,
    file_version,
    is_hidden,
    list_files,
    place_of_results,
)
from upl_ray.corpus.masks import warn_of_masks
from upl_ray.errors import ConfigError, first_line
from upl_ray.storage.store import UNREACHABLE, open_filesystem
from upl_ray.upl.images import EXTENSIONS

Form = Literal["images", "tar", "parquet", "manifest"]
SUFFIXES: dict[Form, tuple[str, ...]] = {
    "images": EXTENSIONS,
    "tar": (".tar",),
    "parquet": (".parquet",),
    "manifest": (".txt", ".csv", ".jsonl"),
}
FORMS = f"files ending in {' '.join(EXTENSIONS)}, tar or Parquet archives of them, or a manifest (.txt, .csv, .jsonl)"
KNOWN = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.zst", ".tar.xz", ".zip")
MOST_NAMES = 2_000_000  # that braces may stand for: 300 MB
TABLE = re.compile(r"(^|/)(_delta_log/.|metadata/[^/]*\.metadata\.json$)")  # logs that say which files count
STEP = re.compile(r"[a-z_-]+-[0-9a-f]{12}/")  # the folder of a step, see `storage.step`
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


@dataclass(frozen=True)
class Found:
    """The files of one form at one address."""

    root: str
    form: Form
    files: dict[str, str]  # file relative to the root -> version
    left_out: LeftOut = field(default_factory=LeftOut)


class ImageFile(NamedTuple):
    """An image in a file that holds nothing else."""

    file: str  # relative to the root, or an absolute address
    version: str
    label: str | None  # as the source gives it


def find(uri: str, results: str = "") -> Found:
    """List an address: a folder or prefix, one file, or a pattern such as `s3://bucket/shards/*.tar`.

    In a pattern `*`, `?` and `[ab]` stay within one folder and `**` stands for any number of folders, as in a shell;
    `{a,b}` and `{0000..0099}` work, too. Files and folders whose names begin with a dot are never found.

    Args:
        uri: the address.
        results: address of the run's own storage, whose files are never found; empty: none.

    Raises:
        ConfigError: it does not exist, cannot be reached, holds nothing that can be read, or several forms at once.
    """
    if uri.lower().endswith(COMPRESSED):
        raise ConfigError(f"{uri!r} is compressed, so its images cannot be read one by one; unpack it to .tar.")
    try:
        folder, pattern, is_file = _split(uri)
        if not pattern and _is_local_file(folder):
            raise ConfigError(f"{uri!r} is a file of another form; name {FORMS}.")
        listing = Listing({pattern: file_version(uri)}) if is_file else list_files(folder)
        chosen = _matcher(pattern) if pattern and not is_file else None
        if not is_file:
            own = _own_place(results, uri, folder, pattern) if results else ""
            _check_results(listing.files, own, results, chosen or bool)
            listing.drop_results(own)
    except ConfigError:
        raise
    except UNREACHABLE as error:
        raise ConfigError(
            f"The images under {uri!r} cannot be listed ({first_line(error)}); check the address and the access."
        ) from None
    visible = {f: v for f, v in listing.files.items() if not is_hidden(f)}
    if chosen:
        visible = {f: v for f, v in visible.items() if chosen(f)}
    visible = listing.drop_doubles(visible, lambda file: file.lower().endswith(KNOWN))
    by_form = {form: {f: v for f, v in visible.items() if f.lower().endswith(SUFFIXES[form])} for form in SUFFIXES}
    if not pattern:
        by_form["manifest"] = {}  # a text file beside images is no manifest: a manifest is named itself
    present: list[Form] = [form for form, of_form in by_form.items() if of_form]
    known = {f for form in present for f in by_form[form]}
    count_suffixes((f for f in visible if f not in known), listing.left_out)
    if not present:
        hint = " (in a pattern `*` stays within one folder, `**` does not)" if chosen else ""
        others = f", but {listing.left_out}" if listing.left_out.counts else ""
        raise ConfigError(f"No image lies under {uri!r}{others}{hint}; name {FORMS}.")
    if len(present) > 1:
        raise ConfigError(
            f"{uri!r} holds {' and '.join(f'{len(by_form[f])} {f} files' for f in present)}; "
            f"choose one form by a pattern, for example {folder}/**/*{SUFFIXES[present[0]][0]}."
        )
    if present == ["images"]:
        warn_of_masks(by_form["images"], uri)
    if present == ["parquet"] and (of_table := next(filter(TABLE.search, listing.files), None)):
        raise ConfigError(
            f"{uri!r} is a Delta or Iceberg table ({of_table}), whose folder keeps replaced and deleted rows; export "
            f"its current rows to Parquet files elsewhere."
        )
    return Found(folder, present[0], by_form[present[0]], listing.left_out)


def _own_place(results: str, uri: str, folder: str, pattern: str) -> str:
    """Where the run's own storage lies below the folder; empty if it lies elsewhere."""
    place = place_of_results(results, folder)
    if place == "" and ("/" in pattern or not pattern):
        raise ConfigError(
            f"storage_path {results!r} is the folder of the images {uri!r} itself, where results and images look "
            f"alike; give storage_path a folder that holds nothing else."
        )
    return place or ""


def _check_results(files: Iterable[str], own: str, results: str, chosen: Callable[[str], bool]) -> None:
    """Refuse a new folder of results in which images lie: they would be left out with it."""
    inside = [f for f in files if f.startswith(f"{own}/")] if own else []
    if any(STEP.match(f, len(own) + 1) for f in inside):
        return  # of earlier runs, beside whose results people may put what they like
    image = next((f for f in inside if f.lower().endswith(EXTENSIONS) and not is_hidden(f) and chosen(f)), None)
    if image:
        raise ConfigError(
            f"storage_path {results!r} holds images, such as {image!r}; give storage_path a folder that holds nothing "
            f"else."
        )


def _split(uri: str) -> tuple[str, str, bool]:
    """The folder to list; the pattern that files must match, empty for all; whether it is the name of one file."""
    scheme, separator, path = uri.rpartition("://")
    parts = path.rstrip("/").split("/")
    wild = next((i for i, part in enumerate(parts) if re.search(r"[*?\[{]", part)), None)
    if wild is not None and not re.search(r"[*?]", path) and _exists(uri):
        wild = None  # `photos[1]` is also a name
    is_file = wild is None and parts[-1].lower().endswith(KNOWN) and (bool(separator) or not Path(path).is_dir())
    first = len(parts) - 1 if is_file else wild
    if first is None:
        return uri.rstrip("/") or "/", "", False
    return f"{scheme}{separator}{'/'.join(parts[:first])}" or "/", "/".join(parts[first:]), is_file


def _is_local_file(uri: str) -> bool:
    """Object storage lists a file's name like that of an empty folder."""
    return "://" not in uri and Path(uri).expanduser().is_file()


def _exists(uri: str) -> bool:
    fs, path = open_filesystem(uri)
    return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a file matches a pattern, by the rules of `find`; raises ValueError on `**` beside other characters."""
    patterns = expand_braces(pattern)
    plain = {p for p in patterns if not re.search(r"[*?\[]", p)}  # `{000000..146999}.tar` is many: look names up
    # The library lets `[!a]` match a slash.
    wild = "|".join(glob_translate(p).replace("[^", "[^/") for p in patterns if p not in plain)
    expression = re.compile(wild) if wild else None
    return lambda file: file in plain or (expression is not None and expression.match(file) is not None)


def expand_braces(pattern: str) -> list[str]:
    """Patterns that `{a,b}` and `{08..11}` stand for, as in a shell; other braces are plain characters.

    Raises:
        ConfigError: they are too many to look at each.
    """
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    many = math.prod(abs(int(b) - int(a)) + 1 if a else names.count(",") + 1 for a, b, names in BRACES.findall(pattern))
    if many > MOST_NAMES:
        raise ConfigError(f"{pattern!r} stands for {many:,} names, more than {MOST_NAMES:,}; write * for the numbers.")
    first, last, names = found.groups()
    if names is None:
        first, last = sorted((first, last), key=int)
        options = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    else:
        options = names.split(",")
    before, behind = pattern[: found.start()], pattern[found.end() :]
    return [p for option in options for p in expand_braces(before + option + behind)]


def sub_folder(image_id: str) -> str | None:
    """The first folder of a path, which may be its true class."""
    parts = PurePosixPath(image_id).parts
    return parts[0] if len(parts) > 1 else None
