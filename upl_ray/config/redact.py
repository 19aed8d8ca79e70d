"""Secrets and hosts that no address may hold, and text that is safe to print (pure).

Secrets belong into the environment or an instance's role: addresses are logged, written into storage, shown by `ps`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from upl_ray.errors import ConfigError

BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs")  # schemes with a bucket in place of a host: it has no port
CREDENTIALS = (
    # KEY:SECRET@bucket and TOKEN@bucket. A secret may hold slashes, so it ends at the last @.
    re.compile(r"(?i)((?:s3|s3a|s3n|gs|gcs)://)[^\s/?#:@]*(?::\S*)?@"),
    re.compile(r"(?i)(https?://)[^\s/?#:@\[]+@"),  # TOKEN@host; in other schemes, a name alone is a user or container
    re.compile(r"(://)[^\s/?#:@\[]*:(?![0-9]{1,5}[/?#])\S+@"),  # user:secret@host, but not host:9000/a@b
)
QUERY = re.compile(r"\?\S+")
# sig=..., X-Amz-Signature=..., secret_key=...; no author= and no design=
SECRET_PARAMETER = re.compile(
    r"(?i)([?&;](?:[^=&;?]*(?:signature|secret|token|passw|credential|access.?key|api.?key)[^=&;?]*"
    r"|(?:[^=&;?]*[-_.])?(?:sig|pwd|auth))=['\"]?)[^&'\"]+"
)
HOST = re.compile(r"([a-z0-9+.-]{0,20})://(?:[^\s/?#@]*@)?(\[[^\]]*\]|[^\s/?#:]*)")
# Services that give a machine's credentials to who asks; the link-local ones among them need no entry here.
METADATA = (
    *("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"),
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),  # AWS, its pods, Google
    *("100.100.100.200", "192.0.0.192", "168.63.129.16"),  # Alibaba, Oracle, Azure
)
# Controls, line breaks beyond ASCII, and marks that turn the direction of text. A log line keeps its own line breaks.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# Neither files nor UTF-8 can hold these.
UNUSABLE = re.compile("[\x00\ud800-\udfff]")


def find_flaw(text: str) -> str | None:
    """The reason why a text may stand in no setting and no manifest, in words that do not repeat it; else None."""
    if UNUSABLE.search(text):
        return "holds a null character or half of a pair (a surrogate), as no name of a file or class can; remove it"
    if "://" not in text:
        return None
    if _without_secrets(text) != text:
        return "holds credentials; take them out, and give them by the environment (AWS_..., HF_TOKEN) or a role"
    if _is_metadata(text):
        return "leads to a cloud's metadata service or another link-local host; name where the files lie"
    return None


def find_flaws(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Field and flaw of every text in nested lists and mappings: `corpus.uri`, why."""
    if isinstance(value, str):
        if flaw := find_flaw(value):
            yield field, flaw
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from find_flaws(key, f"a name in {field or 'it'}")
            yield from find_flaws(item, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from find_flaws(item, field)


def reject_secrets(args: list[str]) -> list[str]:
    """The arguments of a command.

    Raises:
        ConfigError: one of them holds credentials, which the error does not repeat.
    """
    found = next(find_flaws(args, "An argument"), None)
    if found:
        raise ConfigError(" ".join(found) + ".")
    return args


def sanitized(text: str) -> str:
    """Text for a terminal or a log: no secret, and nothing that moves the cursor or the direction of writing."""
    return UNPRINTABLE.sub(lambda c: c[0].encode("unicode_escape").decode(), _without_secrets(text))


def _without_secrets(text: str) -> str:
    """The text with *** for secrets."""
    for pattern in CREDENTIALS:
        text = pattern.sub(r"\1***@", text)
    return QUERY.sub(lambda query: SECRET_PARAMETER.sub(r"\1***", query[0]), text)


def _is_metadata(address: str) -> bool:
    for scheme, host in HOST.findall(address.lower()):  # several in simplecache::http://...
        name = host.strip("[]").partition("%")[0].rstrip(".")
        if name in METADATA and scheme not in BUCKETS:
            return True
        try:
            number = ipaddress.ip_address(name)
        except ValueError:
            continue
        number = getattr(number, "ipv4_mapped", None) or number
        if number.is_link_local or str(number) in METADATA:
            return True
    return False
