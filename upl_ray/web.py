"""Files on web servers: what fsspec does not tell apart, a missing one from a server that refuses or fails.

One request for a file, whether the server says its length or not; redirects are not followed (see `storage`).
"""

from __future__ import annotations

from http import HTTPStatus

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

MISSING = "missing file"
GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def is_web(address: str) -> bool:
    """True for an address of a web server."""
    return address.startswith(("http://", "https://"))


def read_web(fs: HTTPFileSystem, url: str, max_bytes: int) -> bytes | str:
    """The file, or a reason: it is missing, or larger than `max_bytes`.

    Raises:
        PermissionError: the server refuses.
        OSError: it cannot be reached, fails, breaks off, or sends elsewhere.
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
        if answer.status != HTTPStatus.OK:  # a redirect too: it may lead to a login page, and be over tomorrow
            raise OSError(f"{url}: the server answers {answer.status}")
        body = bytearray()
        async for piece in answer.content.iter_chunked(2**20):
            body += piece
            if len(body) > max_bytes:
                return too_large(max_bytes)
        return bytes(body)


def too_large(max_bytes: int) -> str:
    """Why a file is not read."""
    return f"more than {max_bytes} bytes"
