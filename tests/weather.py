"""A Redis of a test's own, and the weathers that it can be in: refusing, hung, loading, full, read-only, dying.

Knows nothing of what is kept in it.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis as redis_py
from serving import PATIENCE, eventually

from console.services import Embedded

LOADED_KEYS = 25_000
LOADING_DELAY = 20
"""Microseconds for each key, at least: some seconds of LOADING, with a look at its clients at every thousandth key."""


@dataclass(frozen=True)
class OwnRedis:
    """A Redis that a test may stop, kill and misconfigure."""

    embedded: Embedded
    url: str
    client: redis_py.Redis

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._popen.pid)

    def kill(self) -> None:
        """As the power does. Its first thread may be gone while others still end, so all of it is waited for."""
        self._popen.kill()
        self._popen.wait(PATIENCE)

    @property
    def _popen(self) -> subprocess.Popen[bytes]:
        popen = self.embedded.servers["Redis"].process
        assert popen is not None
        return popen

    def revive(self) -> None:
        assert self.embedded.revive() == ["Redis"]


@contextmanager
def own_redis_in(folder: Path) -> Iterator[OwnRedis]:
    with (
        Embedded(folder, with_postgres=False) as embedded,
        redis_py.Redis.from_url(embedded.redis_url) as client,
    ):
        yield OwnRedis(embedded, embedded.redis_url, client)


@contextmanager
def refusing(own: OwnRedis) -> Iterator[None]:
    own.kill()
    yield
    own.revive()


@contextmanager
def hung(own: OwnRedis) -> Iterator[None]:
    """SIGSTOP: its connections stay open and nothing answers; what was sent meanwhile is executed afterwards."""
    own.process.suspend()
    try:
        yield
    finally:
        own.process.resume()


@contextmanager
def loading(own: OwnRedis) -> Iterator[None]:
    """It reads its own file again."""
    with own.client.pipeline(transaction=False) as pipe:
        for number in range(LOADED_KEYS):
            pipe.set(f"ballast:{number}", "")
        pipe.execute()
    own.client.config_set("key-load-delay", LOADING_DELAY)

    def load() -> None:
        with suppress(redis_py.RedisError), redis_py.Redis.from_url(own.url, socket_timeout=60, retry=None) as client:
            client.execute_command("DEBUG", "LOADAOF")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        assert eventually(lambda: _says_loading(own))
        yield
    finally:
        thread.join()
        own.client.config_set("key-load-delay", 0)


def _says_loading(own: OwnRedis) -> bool:
    try:
        own.client.ping()
    except redis_py.BusyLoadingError:
        return True
    return False


def _set_to(break_it: str, mend_it: str) -> Callable[[OwnRedis], AbstractContextManager[None]]:
    @contextmanager
    def weather(own: OwnRedis) -> Iterator[None]:
        own.client.execute_command(*break_it.split())
        yield
        own.client.execute_command(*mend_it.split())

    return weather


WEATHERS: Mapping[str, Callable[[OwnRedis], AbstractContextManager[None]]] = {
    "refuses": refusing,
    "hung": hung,
    "loading": loading,
    "out of memory": _set_to("config set maxmemory 1", "config set maxmemory 0"),
    "read only": _set_to("replicaof 127.0.0.1 1", "replicaof no one"),
}
