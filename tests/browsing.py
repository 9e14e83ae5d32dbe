"""A person at the console: the real app behind a real uvicorn, and a browser's manners without a browser.

Keeps cookies, says with each form where it comes from, and reads pages as a browser would: as elements, not as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import httpx

from console.web.app import build
from console.web.settings import Settings
from schemas.endpoints import Config, Endpoint
from tests.serving import serving
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
    with serving(build(settings)) as url, httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
        yield Browser(client)


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
