"""What the five simulated providers share: a venue's account, its sender, its weather.

A provider's file subclasses Venue and holds its manners: what it sends, when it sends it again, what its API says.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from operator import itemgetter
from random import Random
from typing import Any, ClassVar, Final, Self
from uuid import uuid4

from starlette.routing import BaseRoute

from simulators.clock import DAY, Clock
from simulators.ledger import Ledger, Outcome, Sent
from simulators.sender import Manner, Reply, Request, Sender

ON_ITS_WAY: Final = 0.2
"""Seconds before anything else may follow a request that its sender left: it is still being read, and what a provider
says one after the other must not overtake itself where nothing in the bodies tells their order."""


@dataclass(kw_only=True)
class Weather:
    """How bad the network and the provider's own day are; every number is a chance from 0 to 1.

    It may be changed at any time; what is under way goes on as it began, but for calls that hang.
    """

    duplicate: float = 0.0
    """A request is sent once more, a moment later."""
    reorder: float = 0.0
    """A request is held back, so that later ones overtake it. Only where the provider's order survives it."""
    hang_up_early: float = 0.0
    """The sender writes all of it, then closes without reading, every other time with RST; the attempt has failed."""
    slow_body: float = 0.0
    """The body comes in small pieces."""
    api_down: float = 0.0
    """A call to the provider's API is answered 503."""
    api_garbage: float = 0.0
    """A call to the provider's API is answered 200 with HTML, or with JSON that is cut short."""
    api_cut: float = 0.0
    """A call to the provider's API is answered 200, and the connection closes in the middle of the body."""
    api_slow: float = 0.0
    """A call to the provider's API takes `slow_seconds`."""
    slow_seconds: float = 1.0
    api_hang: float = 0.0
    """A call to the provider's API is taken and not answered until this is 0 again, or until the client leaves."""


@dataclass
class Post:
    """One request to the webhook URL; repeats and copies of it are the same value."""

    about: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    bookings: tuple[str, ...] = ()
    """The bookings (external ids) that it speaks of."""
    events: int = 1
    """How many events it carries."""
    taken: bool = False
    """Some attempt at it was answered with success."""


Life = tuple[float, Callable[[], Coroutine[Any, Any, None]]]
"""When something begins (simulated seconds after the day's beginning), and what then happens."""


class Venue(ABC):
    """One account at one provider, connected to one endpoint of Reservoir."""

    provider: ClassVar[str]
    deadline: ClassVar[float] = 30.0
    """Seconds (wall clock) that the sender waits for an answer."""
    events_each: ClassVar[float] = 3.0
    """How many events a busy day tells of each booking, its duplicates included; measured, about."""
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
        self._sender: Sender | None = None
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

    async def live(self, events: int, seconds: float) -> None:
        """A busy day with about that many events that takes about that long on the wall clock. It sets the clock's
        pace, so venues that share a clock live for the same time. Returns as `busy_day` does."""
        self.clock.pace(DAY.total_seconds() / seconds)
        await self.busy_day(max(1, round(events / self.events_each)))

    # --- the sender ---

    async def __aenter__(self) -> Self:
        self._sender = Sender()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._sender is not None
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._sender.close()

    def launch(self, sending: Coroutine[Any, Any, Any]) -> None:
        """Lets a delivery run beside everything else, until it is done or the venue closes."""
        task = asyncio.create_task(sending)
        self._under_way.add(task)
        task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[Any]) -> None:
        """One that failed stays, for `settled` to tell."""
        if task.cancelled() or task.exception() is None:
            self._under_way.discard(task)

    async def unfold(self, lives: Sequence[Life]) -> None:
        """Begins each life at its time and returns when all have ended; until then it costs nothing but its plan."""
        began = self.clock.scheduled()
        for after, life in sorted(lives, key=itemgetter(0)):
            await self.clock.until(began + timedelta(seconds=after))
            self.launch(life())
        await self.settled()

    async def settled(self) -> None:
        """Returns when nothing that was launched is under way any more; raises what a delivery raised."""
        while self._under_way:
            await asyncio.gather(*self._under_way)

    async def post(self, post: Post) -> Sent:
        """Sends one request and notes it in the ledger. Never raises for what the network does."""
        assert self._sender is not None, "use the venue as an async context manager"
        began, number = time.time(), uuid4().hex
        headers = {**post.headers, "x-request-id": number, "date": self.clock.date()}
        reply = await self._sender.send(
            Request(post.method, self.hook_url, headers, post.body), deadline=self.deadline, manner=self._manner(post)
        )
        sent = self._noted(post, reply, began=began, number=number)
        post.taken |= sent.acked
        self.ledger.record(sent)
        if sent.outcome is Outcome.HUNG_UP:
            await asyncio.sleep(ON_ITS_WAY)
        return sent

    def _manner(self, post: Post) -> Manner:
        if self.chance.random() < self.weather.hang_up_early:
            return self.chance.choice((Manner.CLOSING, Manner.RESETTING))
        if post.body and self.chance.random() < self.weather.slow_body:
            return Manner.DRIPPING
        return Manner.PLAIN

    def _noted(self, post: Post, reply: Reply, *, began: float, number: str) -> Sent:
        return Sent(
            endpoint=self.endpoint,
            provider=self.provider,
            at=began,
            seconds=reply.seconds,
            status=reply.status,
            about=post.about,
            late=reply.outcome is Outcome.TIMED_OUT or reply.seconds >= self.deadline,
            outcome=reply.outcome,
            request=number,
            bookings=post.bookings,
            events=post.events,
        )

    def give_up(self, post: Post) -> None:
        """The repeats of a request are used up. Unless some copy of it was taken, nobody can know what it said."""
        if not post.taken:
            self.ledger.give_up(self.endpoint, post.bookings)
