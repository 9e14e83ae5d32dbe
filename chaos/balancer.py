"""haproxy in front of the receivers, with the manners of `deploy/haproxy.cfg`: its own file, with addresses filled in.

Where haproxy is not installed there is no balancer, and one receiver is talked to directly.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from socket import create_connection, create_server
from time import monotonic, sleep
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from console.services import bound_to_parent

CONFIGURATION: Final = Path(__file__).resolve().parent.parent / "deploy" / "haproxy.cfg"
UP_WITHIN: Final = 10.0


class NoBalancer(Exception):
    """haproxy does not start; the message holds what it said."""


def program() -> str | None:
    """Where haproxy is; None where it is not installed."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


def rendered(configuration: str, port: int, receivers: Sequence[str]) -> str:
    """The deployed file for receivers that stand at known addresses, in place of Docker's name service."""
    text = re.sub(r"(?ms)^resolvers docker\n.*?(?=^\S)", "", configuration)
    text = re.sub(r"(?m)^(\s*)bind :\d+$", rf"\g<1>bind 127.0.0.1:{port}", text)
    template = re.compile(r"(?m)^(\s*)server-template .*$")
    servers = [f"server receiver-{number} {urlsplit(url).netloc}" for number, url in enumerate(receivers, start=1)]
    return template.sub(lambda found: "\n".join(found[1] + server for server in servers), text)


class Balancer:
    """One haproxy, as long as the context lasts; `url` is where it listens."""

    def __init__(self, receivers: Sequence[str], folder: Path) -> None:
        with create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._file = folder / "haproxy.cfg"
        self._log = folder / "haproxy.log"
        self._file.write_text(rendered(CONFIGURATION.read_text(encoding="utf-8"), self.port, receivers))

    def __enter__(self) -> Self:
        found = program()
        assert found is not None, "ask program() first"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  (the command is ours)
                bound_to_parent([found, "-db", "-f", str(self._file)]), stdout=log, stderr=subprocess.STDOUT
            )
        deadline = monotonic() + UP_WITHIN
        while not self._listens():
            if self._process.poll() is not None or monotonic() > deadline:
                self.__exit__(None, None, None)
                raise NoBalancer(self._log.read_text(errors="replace"))
            sleep(0.05)
        return self

    def _listens(self) -> bool:
        try:
            create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
