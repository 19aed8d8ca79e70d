"""What may not stand in an address, and how text from outside is shown (pure).

Secrets belong into the environment or an instance's role: addresses are logged, written into storage, shown by `ps`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

SECRETS = (
    # KEY:SECRET@ in front of a host. A secret may hold slashes; HOST:PORT/a@b is no secret.
    re.compile(r"(?<=://)[^/?#@:\s]*:(?!\d{1,5}(?:/|$))[^@\s]+(?=@)"),
    # TOKEN@; other schemes have a container or a user there, as in abfs://container@account.
    *(re.compile(rf"(?i)(?<={scheme}://)[^/?#@\s]+(?=@)") for scheme in ("http", "https", "s3", "gs", "ftp")),
    # ?sig=..., &X-Amz-Signature=..., ;secret_key=...; no author and no design
    re.compile(
        r"(?i)(?<=[?&;])(?:[^=&\s?]*(?:signature|secret|token|passw|credential|access.?key|api.?key)[^=&\s]*"
        r"|(?:[^=&\s?]*[-_.])?(?:sig|pwd|auth))=[^&\s'\"]+"
    ),
)
METADATA = ("metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal")
AWS_METADATA = ipaddress.ip_address("fd00:ec2::254")
# Controls, line breaks beyond ASCII, and marks that turn the direction of text. A log line keeps its own line breaks.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def flaw(address: str) -> str | None:
    """Why an address may not be used, in words that do not repeat it; None if nothing is wrong with it."""
    if "://" not in address:
        return None
    if any(secret.search(address) for secret in SECRETS):
        return "holds credentials; take them out, and give them by the environment (AWS_..., HF_TOKEN) or a role"
    if _is_metadata(address):
        return "leads to a cloud's metadata service or another link-local host; name where the files lie"
    return None


def flaws(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Place and flaw of every address in nested lists and mappings: `corpus.uri`, why."""
    if isinstance(value, str):
        found = flaw(value)
        if found:
            yield place, found
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flaws(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flaws(item, place)


def shown(text: str) -> str:
    """Text for a terminal or a log: nothing in it moves the cursor or the direction of writing, no secret is told."""
    for secret in SECRETS:
        text = secret.sub("***", text)
    return UNSEEN.sub(lambda c: c[0].encode("unicode_escape").decode(), text)


def _is_metadata(address: str) -> bool:
    try:
        last = re.split(r"::(?=[A-Za-z][\w+.-]*://)", address)[-1]  # of a chain such as simplecache::http://...
        host = (urlsplit(last).hostname or "").rstrip(".")
    except ValueError:  # no address at all; who opens it will say so
        return False
    if host.lower() in METADATA:
        return True
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            number = ipaddress.IPv4Address(socket.inet_aton(host))  # 2852039166, 0xa9fea9fe, 0251.0376.0251.0376
        except (OSError, ValueError):
            return False
    mapped = getattr(number, "ipv4_mapped", None) or number
    return mapped.is_link_local or number == AWS_METADATA
