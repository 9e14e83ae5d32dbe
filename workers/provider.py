"""What a provider is, as values: what arrived, what it says about bookings, which call would tell more, and how often
it may be asked.

A provider's file builds these values and performs nothing. Knows no HTTP client, no database, no queue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from schemas.booking import check
from schemas.delivery import RawDelivery
from schemas.endpoints import Endpoint
from workers.errors import Park

# --- what a provider asks for --------------------------------------------------------------------------------


class Auth(Enum):
    """How a call shows who we are. The values of the secrets are filled in where the call is performed."""

    BEARER_KEY = "bearer-key"
    """`Authorization: Bearer <API_KEY>`."""
    BASIC_EMPTY_USER = "basic-empty-user"
    """HTTP Basic with an empty user name and API_KEY as password."""
    BASIC_KEY_SECRET = "basic-key-secret"  # noqa: S105  (a word, not a password)
    """HTTP Basic with API_KEY and API_SECRET."""
    OAUTH = "oauth"
    """`Authorization: Bearer <access token>`: refreshed and kept, or a fixed ACCESS_TOKEN."""
    KEY_IN_PATH = "key-in-path"
    """`{key}` in the path stands for API_KEY; neither the key nor the real path is ever shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One HTTP call to a provider's API, described.

    `name` is the key of its answer in `deliveries.lookup`, so it must be unique within one delivery.
    `path` is relative to the endpoint's API base and already percent-encoded.
    """

    name: str
    method: str = "GET"
    path: str
    auth: Auth
    params: Mapping[str, str] = field(default_factory=dict)
    accepts: frozenset[int] = frozenset()
    """Statuses beside 2xx that are an answer and not a failure, such as 404 for a slot that is gone."""
    required: bool = True
    """False: what the webhook itself says is applied at once, and the rest follows when the API answers."""
    cache: timedelta | None = None
    """How long an answer may serve other deliveries of the same endpoint."""
    keep: Callable[[Any], Any] | None = None
    """What is kept of a 2xx's body, where the answer tells of more than was asked for, such as of other guests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OAuth:
    """Where a provider's OAuth2 lives (RFC 6749, grants `authorization_code` and `refresh_token`).

    The paths are relative to the host of the API, in front of any version.
    """

    authorize: str
    token: str
    scope: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """A question to our own memory: what these bookings' events near this delivery said.

    The answer's body is a list of `{"external_id", "provider_status", "received_at", "delivery_id"}`, this
    delivery's own events left out, in order of receipt.
    """

    name: str
    external_ids: tuple[str, ...]
    within: timedelta


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a Call or a Recall brought: kept in `deliveries.lookup`, so that a rebuild asks nobody again."""

    status: int
    body: Any
    at: datetime
    """When it was asked, UTC: what a read-back says is a fact of that moment."""
    recalled: bool = False
    """From our own memory, by a Recall."""

    @property
    def ok(self) -> bool:
        """Whether the answer is a 2xx."""
        return 200 <= self.status < 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A limit on the calls of one account, as its provider publishes it. `workers.bucket` stays below."""

    per_second: float
    """In the long run."""
    burst: int
    """So many may come at the same moment, where none came before."""

    def at(self, per_second: float) -> Rate:
        """The same for a plan that allows more, or less."""
        burst = round(self.burst / self.per_second * per_second)
        return Rate(per_second=per_second, burst=max(1, burst))


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A rate, and whose calls count together towards it."""

    account: str
    """A name that tells nothing of the credentials."""
    rate: Rate


# --- what arrived --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """A delivery together with what is known when it is read."""

    delivery: RawDelivery
    endpoint: Endpoint
    answers: Mapping[str, Answer] = field(default_factory=dict)


# --- what it says --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What one element of a delivery says about one booking, in our words; only the fields that it carries.

    A column that is absent from `said` was not spoken of; one that is None was said to be empty. Keys inside
    `said["details"]` behave like columns of their own. Payments are gathered over all events of a booking,
    each `id` once, into `details.payments`.
    """

    external_id: str | None
    """The booking's id at the provider; None where the element names a booking by `reference` only."""
    said: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    """With `external_id` None: the code of the booking that is meant, which may not have come yet."""
    payments: Sequence[Mapping[str, Any]] = ()
    """Plain JSON objects with an `id`."""
    version: str | None = None
    """The provider's order, sortable as text (code points); None where there is none."""
    same_as: str | None = None
    """The provider's sameness key, unique per booking; None where nothing tells a repeat from news."""
    as_of: datetime | None = None
    """When it was true, where that is not the time of receipt (a read-back)."""

    def __post_init__(self) -> None:
        check(self.said)
        if (self.external_id is None) == (self.reference is None):
            raise ValueError("an event names its booking by external_id or by reference")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ignored:
    """An element that is known and of no interest."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """An element that cannot be read; it parks the delivery, and the other elements are applied all the same."""

    error: Park


Element = Event | Ignored | Failed


# --- what a provider is --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A setting that only this provider's endpoints take."""

    kind: type
    meaning: str
    check: Callable[[Any], str | None] = lambda value: None
    """Returns the mend where the value is not good: 'write the minutes as a whole number above 0'."""


def _nothing_to_verify(incoming: Incoming, secrets: Mapping[str, str]) -> None:
    return None


def _no_call(incoming: Incoming) -> None:
    return None


def _no_id(delivery: RawDelivery) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One provider: its promises as fields, its manners as pure functions."""

    name: str
    title: str
    docs: str
    """The page that the file is built on."""

    normalize: Callable[[Incoming], Sequence[Element]]
    """One element of the result per element of the body, in the body's order. Raises Park."""
    verify: Callable[[Incoming, Mapping[str, str]], None] = _nothing_to_verify
    """Checks the vendor's signature over the raw bytes with the endpoint's secrets. Raises BadSignature."""
    lookup: Callable[[Incoming], Call | Recall | None] = _no_call
    """The next thing to ask, given the answers so far; None when nothing is missing. Raises Park or Again."""
    message_id: Callable[[RawDelivery], str | None] = _no_id
    """The provider's id of the message, where repeats are known by it before anything is read."""
    acknowledge: Callable[[Incoming], Call | None] = _no_call
    """The call that tells the provider that the delivery is safe; made after the commit."""

    api_url: str | None = None
    """The API base when the endpoint names none; None: the endpoint must say."""
    api_base: Callable[[Endpoint], str | None] = lambda endpoint: endpoint.api_url
    """The API base of an endpoint that does not use `api_url` as it stands."""
    rate: Rate | None = None
    """The published limit on calls of the smallest plan; None: none is published. `calls_per_second` replaces it."""
    oauth: OAuth | None = None
    """Set where calls are made with Auth.OAUTH."""
    options: Mapping[str, Option] = field(default_factory=dict)
    secrets: tuple[tuple[str, ...], ...] = ()
    """Sets of secrets that belong together, in the order of preference: (("api_key", "api_secret"),)."""
    needs_secrets: bool = False
    """True: without one of the sets (or a kept token) the endpoint can do nothing at all."""
    needs_timezone: bool = False
    """True: an endpoint without `timezone` cannot know when a visit is."""

    parser: int = 1
    """Counts up when `normalize` reads old bodies differently; stands on each event."""
