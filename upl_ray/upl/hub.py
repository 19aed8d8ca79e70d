"""Whether the hub of published models can be reached; where not, its client uses what it has downloaded before.

Its client would try for half a minute for each file, also for one that lies in its cache.
"""

from __future__ import annotations

import logging
import os
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

log = logging.getLogger(__name__)

CONNECT_S = 5.0
PORTS = {"http": 80, "https": 443}


@cache
def use_cache_where_unreachable() -> None:
    """Look once whether the hub answers; if not, this process and those that it starts use the cache alone."""
    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or {address.scheme, "all"} & getproxies().keys():
        return
    try:
        socket.create_connection((address.hostname or "", address.port or PORTS[address.scheme]), CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        log.warning("%-12s %s cannot be reached (%s): only what is in the cache is used", "hub", address.netloc, reason)
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
