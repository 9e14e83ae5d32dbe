"""Which endpoint a path leads to: name and token, compared in constant time.

A wrong token and an unknown endpoint are told apart by nothing: neither by the answer nor by the time that it takes.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from schemas.delivery import Door, door_of
from schemas.endpoints import Config, Endpoint, path, token


@dataclass(frozen=True, slots=True)
class Entrance:
    """An endpoint's door with its keys."""

    endpoint: Endpoint
    door: Door
    key: bytes
    previous: bytes
    """The key of the generation before; good until `endpoint.previous_until`."""


class Doors:
    """Every endpoint's entrance, in memory."""

    def __init__(self, config: Config, secret: str) -> None:
        self._entrances: Mapping[str, Entrance] = {
            endpoint.name: Entrance(
                endpoint,
                door_of(endpoint.provider),
                token(secret, endpoint.name, endpoint.generation).encode(),
                token(secret, endpoint.name, endpoint.generation - 1).encode(),
            )
            for endpoint in config
        }
        self._paths: Mapping[bytes, Entrance] = {
            path(secret, entrance.endpoint).encode(): entrance for entrance in self._entrances.values()
        }
        nowhere = Endpoint(name="", provider="")
        # Nobody can hold these keys: no generation counts down to them.
        self._nowhere = Entrance(nowhere, door_of(""), token(secret, "", -1).encode(), token(secret, "", -2).encode())

    def at(self, offered: bytes) -> Entrance | None:
        """The entrance whose present path this is, letter by letter; None for anything else, which is then to be found.

        A dict compares what is offered only with a path of the same hash, whose seed nobody outside knows: the time
        that it takes tells nothing of the keys.
        """
        return self._paths.get(offered)

    def find(self, name: str, key: str, now: datetime) -> Entrance | None:
        """The entrance that name and key open; None where there is none."""
        entrance = self._entrances.get(name, self._nowhere)
        offered = key.encode("utf-8", "replace")
        current = hmac.compare_digest(offered, entrance.key)
        previous = hmac.compare_digest(offered, entrance.previous)
        if entrance is self._nowhere:
            return None
        until = entrance.endpoint.previous_until
        return entrance if current or (previous and until is not None and now < until) else None
