"""What the five simulated providers share: a venue's account, its sender, its weather.

A provider's file subclasses Venue and holds its manners: what it sends, when it sends it again, what its API says.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from ssl import SSLContext
from typing import Any, ClassVar, Self

import httpx
from starlette.routing import BaseRoute

from simulators.clock import Clock
from simulators.ledger import Ledger, Sent


@dataclass(kw_only=True)
class Weather:
    """How bad the network and the provider's own day are; every number is a chance from 0 to 1."""

    duplicate: float = 0.0
    """A request is sent once more, a moment later."""
    reorder: float = 0.0
    """A request is held back, so that later ones overtake it. Only where the provider's order survives it."""
    hang_up_early: float = 0.0
    """The sender closes before it read the answer (and counts the attempt as failed)."""
    slow_body: float = 0.0
    """The body comes in small pieces."""
    api_down: float = 0.0
    """A call to the provider's API is answered 503."""
    api_garbage: float = 0.0
    """A call to the provider's API is answered 200 with HTML, or with JSON that is cut short."""
    api_slow: float = 0.0
    """A call to the provider's API takes `slow_seconds`."""
    slow_seconds: float = 1.0


@dataclass
class Post:
    """One request to the webhook URL."""

    about: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Venue(ABC):
    """One account at one provider, connected to one endpoint of Reservoir."""

    provider: ClassVar[str]
    deadline: ClassVar[float] = 30.0
    """Seconds (wall clock) that the sender waits for an answer."""
    hook_off: bool = False
    """The provider has switched the webhook off; the server's panel shows it."""

    def __init__(
        self,
        *,
        endpoint: str,
        hook_url: str,
        ledger: Ledger,
        clock: Clock,
        rng: Random,
        weather: Weather | None = None,
        **switches: Any,
    ) -> None:
        self.endpoint = endpoint
        self.hook_url = hook_url
        """Set it before the first request; the venue can be made before the URL is known."""
        self.ledger = ledger
        self.clock = clock
        self.rng = rng
        self.chance = Random(rng.getrandbits(64))
        """For the weather only: how often it is asked depends on timing, and the day's content must not."""
        self.weather = weather or Weather()
        self._client: httpx.AsyncClient | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self.set_switches(**switches)

    # --- what a provider's file fills in ---

    @abstractmethod
    def set_switches(self) -> None:
        """Takes this provider's switches as keyword arguments, each with its default: what is unknown about it."""

    @abstractmethod
    def settings(self, api_url: str) -> dict[str, Any]:
        """The table `[endpoints.<name>]` that connects Reservoir to this venue; `api_url` is where `routes` are."""

    @abstractmethod
    def secrets(self) -> dict[str, str]:
        """Secret WHAT (`api_key`, …) → value, for the environment."""

    @abstractmethod
    def routes(self) -> Sequence[BaseRoute]:
        """The provider's API, to be mounted below `/<provider>`."""

    @abstractmethod
    async def busy_day(self, bookings: int) -> None:
        """Lives through a day with about that many bookings: makes, changes, moves and cancels them, sends the
        webhooks, and returns when nothing is left to send. The ledger knows the truth afterwards."""

    def panel(self) -> dict[str, Any]:
        """What the provider's own dashboard shows beyond the deliveries, as JSON; the server's panel prints it."""
        return {}

    # --- the sender ---

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(timeout=self.deadline, trust_env=False, verify=_tls())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._client.aclose()

    def launch(self, sending: Coroutine[Any, Any, Any]) -> None:
        """Lets a delivery run beside everything else, until it is done or the venue closes."""
        task = asyncio.create_task(sending)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def settled(self) -> None:
        """Returns when nothing that was launched is under way any more; raises what a delivery raised."""
        while self._under_way:
            await asyncio.gather(*self._under_way)

    async def post(self, post: Post) -> Sent:
        """Sends one request and notes it in the ledger. Never raises for what the network does."""
        assert self._client is not None, "use the venue as an async context manager"
        began, clock_time, status = time.monotonic(), time.time(), None
        hang_up = self.chance.random() < self.weather.hang_up_early
        try:
            response = await asyncio.wait_for(
                self._client.request(
                    post.method, self.hook_url, headers=dict(post.headers), content=self._content(post)
                ),
                timeout=self.deadline,
            )
            status = None if hang_up else response.status_code
        except (httpx.HTTPError, TimeoutError):
            status = None
        seconds = time.monotonic() - began
        sent = Sent(
            endpoint=self.endpoint,
            provider=self.provider,
            at=clock_time,
            seconds=seconds,
            status=status,
            about=post.about,
            late=seconds >= self.deadline,
        )
        self.ledger.record(sent)
        return sent

    def _content(self, post: Post) -> Any:
        if not post.body or self.chance.random() >= self.weather.slow_body:
            return post.body
        return _dripping(post.body)


@cache
def _tls() -> SSLContext:
    """Reading the certificates takes longer than a whole test; once is enough."""
    return httpx.create_ssl_context()


async def _dripping(body: bytes) -> Any:
    """The body in eight pieces, over about a tenth of a second."""
    size = max(1, len(body) // 8)
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(0.012)
