"""What is read is what was written there: content hashes, and an error that names a damaged file.

    parts and listings      the hash is in the name, and commits and manifests hold the names
    commits and manifests   JSON with its place in the storage, and the hash of everything else in its `sha256`
    tensors                 safetensors with the same two in its metadata
    tables and classifier   `files` of the folder's manifest: name -> hash

A place is folder and name within the storage: a file that was copied over another one is damaged, a storage that was
copied as a whole is not. A classifier's file names none, since people take it out of its storage.

Hashes find accidents: torn writes, flipped bits, mixed-up copies. They do not keep out who may write to the storage.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any

from upl_ray.section import JobError

KEY, PLACE = "sha256", "place"
DIGITS = 32  # hex digits of a hash in a file name: 128 bits


class Damaged(JobError):
    """A file in storage that is not what was written; see `damaged`."""


def damaged(where: str) -> Damaged:
    """The error that names the file and the remedy."""
    return Damaged(
        f"{where} is damaged: its content is not what this version wrote there. Run the job again with `--repair`, "
        f"which checks all files and makes damaged ones anew."
    )


def sha256(data: bytes) -> str:
    """Hex digest of the content."""
    return hashlib.sha256(data).hexdigest()


def hashed_name(stem: str, suffix: str, data: bytes) -> str:
    """`stem-HASHsuffix`: a file name that its content can be checked against."""
    return f"{stem}-{sha256(data)[:DIGITS]}{suffix}"


def check_name(name: str, data: bytes, where: str) -> bytes:
    """The data, if it is what its name says.

    Raises:
        Damaged: it is not, or the name holds no hash.
    """
    found = re.search(rf"-([0-9a-f]{{{DIGITS}}})$", PurePosixPath(name).stem)
    return check(data, found[1] if found else "", where)


def check(data: bytes, expected: str, where: str) -> bytes:
    """The data, if its hash begins with the expected digits.

    Raises:
        Damaged: it does not, or none are expected.
    """
    if not expected or not sha256(data).startswith(expected):
        raise damaged(where)
    return data


def seal_json(value: dict[str, Any], place: str) -> bytes:
    """JSON text of a mapping with its place and the hash of both."""
    value = json.loads(json.dumps({**value, PLACE: place}))  # as it will be read: tuples are lists, and keys are text
    return (json.dumps({**value, KEY: sha256(_canonical(value))}, indent=1, sort_keys=True) + "\n").encode()


def open_json(data: bytes, where: str, place: str | None) -> dict[str, Any]:
    """The mapping that was sealed, without its place and hash; a place of None is not looked at.

    Raises:
        Damaged: it is cut, altered, was never sealed, or belongs to another place.
    """
    try:
        value = dict(json.loads(data))
    except (ValueError, TypeError, RecursionError):
        raise damaged(where) from None
    whole = value.pop(KEY, None) == sha256(_canonical(value))
    made_for = value.pop(PLACE, None)
    if not whole or place not in (None, made_for):
        raise damaged(where)
    return value


def seal_tensors(data: bytes, place: str | None = None) -> bytes:
    """The same safetensors file with its place, if it is bound to one, and its hash in the metadata."""
    header, body = _split(data)
    metadata = {**header.get("__metadata__", {}), **({PLACE: place} if place else {})}
    metadata[KEY] = _tensor_hash({**header, "__metadata__": metadata}, body)
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + body


def open_tensors(data: bytes, where: str, place: str | None = None) -> bytes:
    """The data, if it is the safetensors file that was sealed for this place, or for none.

    Raises:
        Damaged: it is cut, altered, was never sealed, or belongs to another place.
    """
    try:
        header, body = _split(data)
        metadata = header["__metadata__"]
        whole = metadata[KEY] == _tensor_hash(header, body) and metadata.get(PLACE) == place
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise damaged(where) from None
    if not whole:
        raise damaged(where)
    return data


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file: 8 bytes of length, JSON, and the rest."""
    end = 8 + int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8:end])), data[end:]


def _tensor_hash(header: dict[str, Any], body: bytes) -> str:
    metadata = {k: v for k, v in header.get("__metadata__", {}).items() if k != KEY}
    return sha256(_canonical({**header, "__metadata__": metadata}) + body)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
