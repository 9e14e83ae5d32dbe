"""All that can go wrong with a delivery, as one tree sorted by what happens next.

`Park`: a person has to look; the delivery is kept, shown and replayable.
`Again`: it comes back by itself, at growing intervals over 24 hours, and is parked after that.

Each class has a `reason`: a short stable code that stands in `deliveries.reason`, in Flower and in metrics.
The message of an error names places (a field's path, a call's name), never a value: no guest's data, no secret.
"""

from __future__ import annotations

from datetime import timedelta


class DeliveryError(Exception):
    """Something kept a delivery from becoming rows."""

    reason = "error"

    def __init__(self, message: str = "", *, reason: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").split("\n", 1)[0])
        if reason is not None:
            self.reason = reason


# --- a person has to look ------------------------------------------------------------------------------------


class Park(DeliveryError):
    """A person has to look."""

    reason = "parked"


class Malformed(Park):
    """The body is not what this provider sends; the message names the place."""

    reason = "malformed"


class Unsupported(Park):
    """A word that we do not know stands where the meaning depends on it."""

    reason = "unsupported"


class BadSignature(Park):
    """The signature is missing or wrong; nothing of the delivery is applied."""

    reason = "bad-signature"


class MessageGone(Park):
    """The provider does not know the message any more, so its content cannot be read."""

    reason = "message-gone"


class UnknownEndpoint(Park):
    """No such endpoint is configured; add it back, then run `reservoir deliveries retry --reason unknown-endpoint`."""

    reason = "unknown-endpoint"


class Refused(Park):
    """The provider's API refuses the call for good."""

    reason = "lookup-refused"


class OurFault(Park):
    """Our own code failed on this delivery; the message says where."""

    reason = "internal-error"


class NeverEnded(Park):
    """It was begun again and again, alone, and whoever worked on it died."""

    reason = "never-ended"


class GaveUp(Park):
    """It was tried for 24 hours."""

    reason = "gave-up"


# --- it comes back by itself ---------------------------------------------------------------------------------


class Again(DeliveryError):
    """Comes back by itself."""

    reason = "again"
    is_attempt = True
    """Whether it counts towards the 24 hours."""

    def __init__(self, message: str = "", *, reason: str | None = None, after: timedelta | None = None) -> None:
        super().__init__(message, reason=reason)
        self.after = after
        """The provider's own wish (`Retry-After`), where it named one."""


class ProviderUnavailable(Again):
    """The provider's API is down, slow, or answers nonsense."""

    reason = "provider-unavailable"


class Throttled(Again):
    """The provider's API asks us to slow down."""

    reason = "throttled"


class NotYet(Throttled):
    """It was not asked, because we stay below the provider's limit; neither side has failed."""

    is_attempt = False


class CredentialsMissing(Again):
    """The provider's API cannot be asked without credentials; set them, and it goes on by itself."""

    reason = "credentials-missing"


class CredentialsRefused(Again):
    """The provider's API does not take our credentials, also after a refresh."""

    reason = "credentials-refused"


class AwaitingBooking(Again):
    """Speaks of a booking that we have not seen yet."""

    reason = "awaiting-booking"


class Overtaken(Again):
    """While it was looked up, other deliveries spoke of the same bookings, again and again."""

    reason = "overtaken"


class DatabaseTrouble(Again):
    """PostgreSQL was away, or two transactions stood in each other's way."""

    reason = "database-trouble"
