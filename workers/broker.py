"""How Celery reaches Redis: promptly back after an outage, and without a record of the messages that are in hand.

Kombu notes each message in Redis when it is taken and when it is done, and gives back what was noted and never done:
two of the five times that a disk was synced for a delivery. Here a message is a nudge: what it names is in the inbox or
in `deliveries`, where the sweeper finds it. So a worker only remembers what it has in hand
(docs/decisions/0009-a-message-in-hand-is-noted-nowhere.md). Knows no task and no delivery.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport import redis, virtual


class InHand(virtual.QoS):
    """The messages that a worker has taken and not finished; they count for how many it may take."""

    channel: Any
    _delivered: Any
    _flush: Any

    def restore_unacked(self) -> Any:
        """What a worker that ends has not begun goes back to its queue. Where Redis is away, or takes nothing, that is
        left to the sweeper: Kombu itself would write it to a file that nobody reads."""
        self._flush()
        with suppress(*self.channel.connection_errors, *self.channel.connection.channel_errors):
            for message in self._delivered.values():
                self.channel._restore(message)
        self._delivered.clear()


class Channel(redis.Channel):
    """See the module."""

    QoS: Any
    ack_emulation = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.QoS = InHand


class Transport(redis.Transport):
    """See the module."""

    Channel = Channel


class Prompt(Connection):
    """Comes back soon after Redis: Celery's own steps grow to half a minute, in which nothing would be worked on."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        return super().ensure_connection(
            *args, **{"interval_start": 1, "interval_step": 1, "interval_max": 2, **kwargs}
        )

    def get_transport_cls(self) -> Any:
        found = super().get_transport_cls()
        return Transport if found is redis.Transport else found


class Amqp(AMQP):
    """What a Celery app is told to use."""

    Connection = Prompt
