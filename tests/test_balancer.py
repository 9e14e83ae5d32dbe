"""The balancer's own file in a real haproxy, in front of two receivers: what it sends a second time, and what never."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from serving import PATIENCE, PLAIN, eventually, free_port, listening

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
CONFIGURATION = Path(__file__).resolve().parent.parent / "deploy" / "haproxy.cfg"

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="there is no haproxy on this machine")


class Receiver:
    """Says that it is ready, and to a delivery what it is told to; nothing at all where that is nothing."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.bodies: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        request = connection.recv(65536)
        if request.startswith(b"GET /readyz"):
            connection.sendall(answer(200))
        elif request:
            self.bodies.append(request.partition(b"\r\n\r\n")[2])
            connection.sendall(self.answer)


def answer(status: int) -> bytes:
    return b"HTTP/1.1 %d Word\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status


@contextmanager
def balanced(tmp_path: Path, *receivers: Callable[[socket.socket], None]) -> Iterator[str]:
    """The deployed file with other addresses; the base URL."""
    port = free_port()
    settings = CONFIGURATION.read_text(encoding="utf-8")
    with ExitStack() as stack:
        ports = [stack.enter_context(listening(receiver)) for receiver in receivers]
        servers = "\n".join(f"    server receiver-{at} 127.0.0.1:{at}" for at in ports)
        for pattern, ours in ((r"bind :8080", f"bind 127.0.0.1:{port}"), (r" *server-template .*", servers)):
            settings, count = re.subn(pattern, ours, settings)
            assert count >= 1
        file = tmp_path / "haproxy.cfg"
        file.write_text(settings, encoding="utf-8")
        assert HAPROXY is not None
        process = stack.enter_context(
            subprocess.Popen([HAPROXY, "-db", "-f", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        url = f"http://127.0.0.1:{port}"
        assert eventually(lambda: _healthy(url) or process.poll() is not None)
        yield url


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", **PLAIN).status_code == 200
    except httpx.TransportError:
        return False


def sent(url: str, count: int = 6) -> list[int]:
    with httpx.Client(**PLAIN, timeout=PATIENCE) as client:
        return [client.post(f"{url}/hooks/arcade/token", content=b"%d" % number).status_code for number in range(count)]


def test_a_receiver_that_dies_without_a_word(tmp_path: Path) -> None:
    """The other one is given the same request, whole; the sender notices nothing."""
    dying, living = Receiver(b""), Receiver(answer(200))
    with balanced(tmp_path, dying, living) as url:
        assert sent(url) == [200] * 6
    assert dying.bodies
    assert sorted(living.bodies) == [b"%d" % number for number in range(6)]


def test_a_503_is_handed_on_as_it_is(tmp_path: Path) -> None:
    """The receiver lives and has said what it had to say; nobody else is asked."""
    full, living = Receiver(answer(503)), Receiver(answer(200))
    with balanced(tmp_path, full, living) as url:
        assert set(sent(url)) == {200, 503}
    assert len(full.bodies) + len(living.bodies) == 6


def test_a_silence_is_not_filled_by_another_one(tmp_path: Path) -> None:
    """It ends in time, with a 504, and nothing was sent twice."""
    silent: list[bytes] = []

    def never(connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        request = connection.recv(65536)
        if request.startswith(b"GET /readyz"):
            connection.sendall(answer(200))
        else:
            silent.append(request)
            connection.recv(65536)  # until the balancer gives up

    living = Receiver(answer(200))
    with balanced(tmp_path, never, living) as url:
        statuses = sent(url, 2)
    assert statuses.count(504) == len(silent) == 1
    assert len(living.bodies) == 1
