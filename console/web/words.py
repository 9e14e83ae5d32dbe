"""The states and reasons of deliveries in words: what they are, and what to do. A test holds them against
docs/operating.md, where the same tables stand for a reader without a console."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from console.alarms.findings import ALARMS

STATES: Final[Mapping[str, str]] = {
    "received": "kept, not worked on yet",
    "applied": "changed at least one booking",
    "duplicate": "was known, or changed nothing",
    "stale": "older than what we have",
    "ignored": "known and of no interest; `reason` says why",
    "retrying": "comes back by itself at `next_attempt_at`, over 24 hours, from seconds to half an hour apart",
    "parked": "needs a person",
}


@dataclass(frozen=True, slots=True)
class Advice:
    """A reason, for whoever looks at it."""

    what: str
    mend: str


_AWAY: Final = Advice(
    "the provider's API is down, slow, asks us to slow down or answers nonsense; `throttled` also where we stay below "
    "its limit",
    "nothing; it is caught up with",
)
_STEPPED_ASIDE: Final = Advice("others worked on the same booking; PostgreSQL was away", "nothing")
_UNKNOWN_WORD: Final = Advice("a word that we do not know stands where the meaning depends on it", "tell us")
_NOT_KEPT: Final = Advice("told by a rebuild: the provider's answer is not kept, and a rebuild asks nobody", "nothing")
_OF_NO_INTEREST: Final = Advice(
    "ignored: a test button, an open slot, a change of the catalogue, an empty list", "nothing"
)

REASONS: Final[Mapping[str, Advice]] = {
    "provider-unavailable": _AWAY,
    "throttled": _AWAY,
    "credentials-missing": Advice("an API must be asked and there is no key or token", "set it; it goes on by itself"),
    "credentials-refused": Advice(
        "the key or token is refused, also after a refresh", "log in again, or paste a new one"
    ),
    "awaiting-booking": Advice("a payment came before its booking", "nothing, for a day; then look at the provider"),
    "overtaken": _STEPPED_ASIDE,
    "database-trouble": _STEPPED_ASIDE,
    "bad-signature": Advice("the signature is missing or wrong; nothing was applied", "compare the secrets"),
    "malformed": Advice("the body is not what this provider sends; the error names the place", "keep it, tell us"),
    "unsupported-action": _UNKNOWN_WORD,
    "unsupported-event": _UNKNOWN_WORD,
    "message-gone": Advice("Lockme does not know the message any more", "look the booking up in Lockme"),
    "no-message-id": Advice("a request to Lockme's URL without a message id; Lockme did not send it", "nothing"),
    "not-looked-up": _NOT_KEPT,
    "lookup-not-kept": _NOT_KEPT,
    "never-read": Advice("nobody has read it yet", "run it again, and it goes the whole way"),
    "lookup-refused": Advice("the provider's API refuses the call for good", "read the error"),
    "unknown-endpoint": Advice(
        "the endpoint is not in `reservoir.toml`",
        "add it, restart, then `reservoir deliveries retry --reason unknown-endpoint`",
    ),
    "internal-error": Advice("our own code failed; the error says where", "tell us"),
    "never-ended": Advice(
        "it was begun ten times, the last eight alone, and whoever worked on it died",
        "keep it, tell us; a worker's log says how it ended",
    ),
    "provider-test": _OF_NO_INTEREST,
    "group-owner": _OF_NO_INTEREST,
    "catalogue-notice": _OF_NO_INTEREST,
    "empty": _OF_NO_INTEREST,
    "no-bookings": _OF_NO_INTEREST,
}


def mend_of(kind: str) -> str | None:
    """What to do about an alarm; None where this version does not know its kind."""
    alarm = ALARMS.get(kind)
    return alarm.mend if alarm else None


def advice(reason: str | None) -> Advice:
    """What is known of a reason."""
    return REASONS.get(reason or "", Advice("a reason that this page does not know", "read the error"))
