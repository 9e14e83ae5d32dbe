"""`reservoir flower`: Flower, which shows what the workers do, to whom it may.

Flower reads FLOWER_BASIC_AUTH by itself. Here it is seen to that without it only this machine is answered, and that its
words come out as everybody's do. Knows no task.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final

from schemas import logs
from schemas.endpoints import ConfigError
from workers.app import app

AUTH: Final = "FLOWER_BASIC_AUTH"
HOST: Final = "FLOWER_HOST"
SHORTEST: Final = 12
"""Characters of a password, as for the console."""


def serve(host: str, port: int) -> None:
    """Until it is asked to end. Raises ConfigError."""
    check(host)
    logs.configure("flower")
    app.conf.include = ()  # it would load every task, and with them what they work with; it is told of them by events
    # Tornado would set up a log of its own, and the access log is Flower's to leave out.
    app.start(["--quiet", "flower", f"--address={host}", f"--port={port}", "--logging=none"])


def check(host: str, environment: Mapping[str, str] = os.environ) -> None:
    """Whether it may listen there. Raises ConfigError."""
    pairs = [pair for pair in environment.get(AUTH, "").split(",") if pair]
    for pair in pairs:
        name, _, password = pair.partition(":")
        if not name or len(password) < SHORTEST:
            raise ConfigError(AUTH, f"takes name:password, the password with at least {SHORTEST} characters")
    if not pairs and not _is_loopback(host):
        mend = f"set {AUTH} to name:password, or leave {HOST} out for this machine only"
        raise ConfigError(HOST, f"Flower without a password listens on 127.0.0.1 only, and not on {host}; {mend}")


def _is_loopback(host: str) -> bool:
    """Whether all that this name stands for is this machine. An empty one stands for everything, and has no address."""
    try:
        found = {each[4][0] for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ip_address(str(address).partition("%")[0]).is_loopback for address in found)
