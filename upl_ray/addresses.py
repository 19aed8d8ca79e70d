"""What may not stand in an address, and how text from outside is shown (pure).

Secrets belong into the environment or an instance's role: addresses are logged, written into storage, shown by `ps`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import Any
from unicodedata import normalize
from urllib.parse import urlsplit

BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs")  # a bucket follows: no port, and no user without a secret
TOKENS = (*BUCKETS, "http", "https")  # a name alone in front of @ is a token here; elsewhere a user or a container
PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]*\]|[^:\[]*):[0-9]{1,5}|\[[0-9A-Fa-f:.]*\]")  # HOST:PORT, [IPv6]:PORT, [IPv6]
# Names of what stands behind `?` and is secret: sig, X-Amz-Signature, secret_key; no author and no design.
SECRET_NAME = re.compile(
    r"(?i)signature|secret|token|passw|credential|access.?key|api.?key|(?:^|[-_.])(?:sig|pwd|auth)$"
)
LONGEST_HOST = 1000  # of 255 bytes that DNS takes, with a port; longer ones would take long to normalise
METADATA = ("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal")
METADATA_NUMBERS = {
    ipaddress.ip_address(number)
    for number in (
        *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),  # AWS, its pods, Google; IPv4 for these is link-local
        *("100.100.100.200", "192.0.0.192", "168.63.129.16"),  # Alibaba, Oracle, Azure
    )
}
NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
# Controls, line breaks beyond ASCII, and marks that turn the direction of text. A log line keeps its own line breaks.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# What neither files nor UTF-8 can hold.
UNFIT = re.compile("[\x00\ud800-\udfff]")


def flaw(address: str) -> str | None:
    """Why an address or another text may not be used, in words that do not repeat it; None if nothing is wrong."""
    if UNFIT.search(address):
        return "holds a null character or half of a pair (a surrogate), as no name of a file or class can; remove it"
    if "://" not in address:
        return None
    if _without_secrets(address) != address:
        return "holds credentials; take them out, and give them by the environment (AWS_..., HF_TOKEN) or a role"
    if _is_metadata(address):
        return "leads to a cloud's metadata service or another link-local host; name where the files lie"
    return None


def flaws(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Place and flaw of every text in nested lists and mappings: `corpus.uri`, why."""
    if isinstance(value, str):
        found = flaw(value)
        if found:
            yield place, found
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flaws(key, f"a name in {place or 'it'}")
            yield from flaws(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flaws(item, place)


def shown(text: str) -> str:
    """Text for a terminal or a log: nothing in it moves the cursor or the direction of writing, no secret is told."""
    return UNSEEN.sub(lambda c: c[0].encode("unicode_escape").decode(), _without_secrets(text))


def _without_secrets(text: str) -> str:
    """The text with *** for secrets, in a time that grows with its length only: it may be hostile."""
    return re.sub(r"\S+", lambda word: _without_query(_without_user(word[0])), text)


def _without_user(word: str) -> str:
    """A word without KEY:SECRET@ and TOKEN@ in front of hosts and buckets."""
    kept, start = [], 0
    last = word.rfind("@")
    while (at := word.find("://", start)) >= 0 and at < last:
        first = at + 3
        end = next((i for i in range(first, len(word)) if word[i] in "/?#"), len(word))
        scheme = word[start:at].lower()  # with what stands before it: git+https, uri=s3
        user, sign, _ = word[first:end].rpartition("@")
        kept.append(word[start:first])
        start = first
        if sign and not user.partition(":")[2]:
            if user and scheme.endswith(TOKENS):
                kept.append("***")
                start = first + len(user)
        elif ":" in word[first:end]:
            # A secret may hold slashes, so it ends at the last @; but in HOST:PORT/a@b there is none.
            port = PORT.fullmatch(word[first:end]) and word[end] == "/" and not scheme.endswith(BUCKETS)
            if sign or not port:
                kept.append("***")
                start = last
    return "".join([*kept, word[start:]])


def _without_query(word: str) -> str:
    """A word without the values of `sig=...` and its like behind `?`; before it, `&` and `;` are plain characters."""
    path, mark, query = word.partition("?")
    parts = []
    for part in query.split("&"):
        at = 0
        for piece in re.split("[;?]", part):
            name, sign, value = piece.partition("=")
            if sign and value and SECRET_NAME.search(name):
                at += len(name) + 1  # the secret may hold `;`, and ends at a quotation mark
                part = part[:at] + re.sub(r"[^'\"]+", "***", part[at:], count=1)
                break
            at += len(piece) + 1
        parts.append(part)
    return path + mark + "&".join(parts)


def _is_metadata(address: str) -> bool:
    plain = address.lower().translate(dict.fromkeys(map(ord, "\t\r\n")))  # as parsers of addresses do
    chain = re.finditer(r"://([^/?#]*)", plain)  # several in simplecache::http://...
    return any(_is_metadata_host(m[1].rpartition("@")[2], plain.endswith(BUCKETS, 0, m.start())) for m in chain)


def _is_metadata_host(host: str, bucket: bool) -> bool:
    if len(host) > LONGEST_HOST:
        return False
    try:
        # Web clients take other alphabets' digits and full stops for ours.
        name = (urlsplit("//" + normalize("NFKC", host).replace("\u3002", ".")).hostname or "").rstrip(".")
    except ValueError:  # no address at all; who opens it will say so
        return False
    if name in METADATA and not bucket:
        return True
    try:
        number = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            number = ipaddress.IPv4Address(socket.inet_aton(name))  # 2852039166, 0xa9fea9fe, 0251.0376.0251.0376
        except (OSError, ValueError):
            return False
    return any(n.is_link_local or n in METADATA_NUMBERS for n in _spelled_in(number))


def _spelled_in(
    number: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The number, and the IPv4 number that it stands for if it does: mapped, compatible, 6to4 and NAT64 ones."""
    yield number
    if isinstance(number, ipaddress.IPv6Address):
        inner = number.ipv4_mapped or number.sixtofour
        if any(number in network for network in (IPV4_COMPATIBLE, *NAT64)):
            inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        if inner:
            yield inner
