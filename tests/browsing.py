"""A person at the console: the real app behind a real uvicorn, and a browser's manners without a browser.

Keeps cookies, says with each form where it comes from, and reads pages as a browser would: as elements, not as text.
For who has a browser (`tests.chromium`): the processes of an installation, by the lines of the Procfile.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx

from console.trial import toml
from console.web.app import build
from console.web.settings import PASSWORD as PASSWORD_VARIABLE
from console.web.settings import Settings
from schemas.endpoints import Config, Endpoint
from tests.serving import PLAIN, eventually, free_port, serving
from tests.world import VENUES

SECRET = "the-secret-of-an-installation"
PASSWORD = "correct horse battery staple"


def settings_of(database_url: str, **changes: Any) -> Settings:
    """A console over that database, with a password and one endpoint per provider."""
    endpoints: Iterable[Endpoint] = changes.pop("endpoints", VENUES.values())
    config = Config(file="test", endpoints={endpoint.name: endpoint for endpoint in endpoints})
    given = {"database_url": database_url, "secret": SECRET, "config": config, "password": PASSWORD, **changes}
    return Settings(**given)


@contextmanager
def console(settings: Settings) -> Iterator[Browser]:
    """A console that runs, and somebody in front of it who has not logged in."""
    with serving(build(settings)) as url, httpx.Client(base_url=url, **PLAIN, timeout=20) as client:
        yield Browser(client)


PROJECT = Path(__file__).resolve().parent.parent
STARTED_WITHIN = 40.0
"""Seconds, on a machine that does something else."""


@contextmanager
def processes(
    folder: Path, *names: str, database_url: str, redis_url: str, endpoints: Iterable[Endpoint]
) -> Iterator[str]:
    """These processes of the Procfile, the console among them, each in a session of its own; the console's address."""
    file, port = folder / "reservoir.toml", free_port()
    file.write_text("\n".join(map(_table, endpoints)), encoding="utf-8")
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "HOME": str(folder),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "RESERVOIR_CONFIG": str(file),
        "RESERVOIR_SECRET": SECRET,
        PASSWORD_VARIABLE: PASSWORD,
        "CONSOLE_PORT": str(port),
        "RESERVOIR_CONCURRENCY": "1",
    }
    lines = dict(re.findall(r"(?m)^(\w+): (.*)$", (PROJECT / "Procfile").read_text(encoding="utf-8")))
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        for name in names:
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            stack.enter_context(_running(["sh", "-c", f"exec {lines[name]}"], environment, folder, log))
        assert eventually(lambda: _lives(url), STARTED_WITHIN), (folder / "console.log").read_text(encoding="utf-8")
        yield url


def _table(endpoint: Endpoint) -> str:
    told = {"provider": endpoint.provider, "timezone": endpoint.timezone, **endpoint.options}
    return f"[endpoints.{endpoint.name}]\n{toml(told)}"


@contextmanager
def _running(command: list[str], environment: Mapping[str, str], folder: Path, log: Any) -> Iterator[None]:
    """Ended cleanly, and where that takes too long, all the same."""
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STARTED_WITHIN)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", **PLAIN).status_code == 200
    except httpx.TransportError:
        return False


@dataclass(frozen=True)
class Element:
    """A start tag."""

    name: str
    attributes: Mapping[str, str]


@dataclass
class Page(HTMLParser):
    """A page as a browser takes it apart."""

    html: str
    elements: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        """All that can be read, in one line."""
        return " ".join(self.texts)

    def all(self, name: str, /, **attributes: str) -> list[Element]:
        """Elements of that name that have these attributes."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [one for one in self.elements if one.name == name and wanted.items() <= one.attributes.items()]

    def links(self, below: str = "/") -> list[str]:
        """Where its links lead."""
        return [one.attributes["href"] for one in self.all("a") if one.attributes["href"].startswith(below)]

    @property
    def token(self) -> str:
        """What its forms carry."""
        return self.all("input", name="token")[0].attributes["value"]


@dataclass
class Browser:
    """Somebody at the console."""

    client: httpx.Client

    @property
    def origin(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def open(self, path: str, *, status: int = 200) -> Page:
        """The page behind this address, which must be there."""
        answer = self.client.get(path)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[:500]}"
        return Page(answer.text)

    def send(self, path: str, fields: Mapping[str, Any], *, of: str = "/", **headers: str) -> httpx.Response:
        """A form of the page `of`, as a browser sends it; redirects are not followed."""
        token = Page(self.client.get(of, follow_redirects=True).text).token
        return self.client.post(path, data={"token": token, **fields}, headers={"origin": self.origin, **headers})

    def log_in(self, password: str = PASSWORD) -> httpx.Response:
        return self.send("/login", {"password": password}, of="/login")
