"""Telling systemd how far the process is: sd_notify(3), as ``Type=notify`` expects it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from twisted.logger import Logger

log = Logger()

READY: Final = "READY=1"
"""It listens."""
STOPPING: Final = "STOPPING=1"
"""It drains."""


def notify(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """
    Tell whoever started this process, if that wants to know (``NOTIFY_SOCKET``); never waits, never raises.

    :param state: `READY` or `STOPPING`.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        # In the abstract namespace.
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(state.encode("ascii"), address)
    except OSError as problem:
        log.warn("systemd could not be told {state} (NOTIFY_SOCKET): {problem}", state=state, problem=problem)
