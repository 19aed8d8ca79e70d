"""Whether the hub of published models can be reached; where not, its client uses what it has downloaded before.

Its client would try for half a minute for each file, also for one that lies in its cache.
"""

from __future__ import annotations

import logging
import os
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants

from upl_ray.errors import ConfigError

log = logging.getLogger(__name__)

CONNECT_S = 5.0
PORTS = {"http": 80, "https": 443}  # of proxies of other kinds theirs are given, or they are not looked at


def _host_and_port(address: str) -> tuple[str, int] | None:
    parts = urlsplit(address)
    try:
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:  # it is out of range
        return None
    return (parts.hostname, port) if parts.hostname and port else None


@cache
def use_cache_where_unreachable() -> None:
    """Look once whether the hub, or the proxy before it, answers.

    If not, this process and those that it starts use the cache alone.

    Raises:
        ConfigError: HF_ENDPOINT is no address.
    """
    if constants.HF_HUB_OFFLINE:
        return
    address = urlsplit(constants.ENDPOINT)
    host = _host_and_port(constants.ENDPOINT)
    if host is None:
        raise ConfigError(f"HF_ENDPOINT {constants.ENDPOINT!r} is no address; write https:// and the hub's name.")
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    behind = bool(proxy) and not proxy_bypass(host[0])
    if proxy and behind:
        host = _host_and_port(proxy if "://" in proxy else f"http://{proxy}")
        if host is None:
            return  # as its client understands it
    try:
        socket.create_connection(host, CONNECT_S).close()
    except OSError as error:
        name = f"{'the proxy ' if behind else ''}{host[0]}:{host[1]}"
        reason = error.strerror or str(error)
        log.warning("%-12s %s cannot be reached (%s): only what is in the cache is used", "hub", name, reason)
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
