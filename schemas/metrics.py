"""Every metric that Reservoir exposes: its name, its meaning, its labels. A change here is a change for dashboards.

Each label has few values: endpoints and providers are named in the configuration, states, reasons and answers in the
code. No label holds an id, an address or anything of a guest. Data only; knows neither who counts nor who serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What a metric is to Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Metric:
    """One metric. Each is one of those below, so two are the same when they are one: it is a quick key of a dict."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Kind = Kind.GAUGE
    buckets: tuple[float, ...] = ()
    """Of a histogram: upper bounds, rising; the last one, without a bound, goes without saying."""


# --- counted by the receivers --------------------------------------------------------------------------------------

REQUESTS: Final = Metric(
    name="reservoir_requests_total",
    help="Requests to hook URLs by what was answered, and where the delivery was kept (redis, spool; empty: nowhere). "
    "Without an endpoint: the URL was wrong. Status 0: the sender left before its body was complete.",
    labels=("endpoint", "status", "kept"),
    kind=Kind.COUNTER,
)
ACK: Final = Metric(
    name="reservoir_ack_seconds",
    help="From the head of a delivery's request to our answer.",
    labels=("endpoint",),
    kind=Kind.HISTOGRAM,
    # Fine where answers are given in good weather, and around the limits of bad weather: 0.15, 0.8, 0.95, 2 and 5 s.
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0),
)

# --- counted by the workers ----------------------------------------------------------------------------------------

SETTLED: Final = Metric(
    name="reservoir_deliveries_settled_total",
    help="Deliveries that reached a final state, with the reason where there is one.",
    labels=("endpoint", "state", "reason"),
    kind=Kind.COUNTER,
)
LAG: Final = Metric(
    name="reservoir_lag_seconds",
    help="From the receipt of a delivery to the commit of the rows that it changed; replays left out.",
    labels=("endpoint",),
    kind=Kind.HISTOGRAM,
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0),
)
RETRIES: Final = Metric(
    name="reservoir_retries_total",
    help="Attempts that ended in another one to come, by reason.",
    labels=("endpoint", "reason"),
    kind=Kind.COUNTER,
)
LOOKUP: Final = Metric(
    name="reservoir_lookup_seconds",
    help="Requests to a provider's API by the status of the answer (none: no answer).",
    labels=("provider", "status"),
    kind=Kind.HISTOGRAM,
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
CIRCUIT_OPENINGS: Final = Metric(
    name="reservoir_circuit_openings_total",
    help="How often the circuit to an endpoint's API opened, or a probe found that it must stay open.",
    labels=("endpoint",),
    kind=Kind.COUNTER,
)

COUNTED: Final = (REQUESTS, ACK, SETTLED, LAG, RETRIES, LOOKUP, CIRCUIT_OPENINGS)

# --- seen by a look at the configuration, Redis, PostgreSQL and the spool ------------------------------------------

REACHABLE: Final = Metric(
    name="reservoir_reachable",
    help="1 where the last look succeeded, 0 where it failed: redis, postgres, spool.",
    labels=("what",),
)
PROCESSES: Final = Metric(
    name="reservoir_processes",
    help="Processes on this machine that count and are alive; a worker appears with its first delivery.",
    labels=("kind",),
)
ACK_DEADLINE: Final = Metric(
    name="reservoir_ack_deadline_seconds",
    help="How long the endpoint's provider waits for our answer; missing where it does not say.",
    labels=("endpoint",),
)
INBOX: Final = Metric(
    name="reservoir_inbox_requests",
    help="Requests in Redis that PostgreSQL does not have yet.",
)
INBOX_OLDEST: Final = Metric(
    name="reservoir_inbox_oldest_seconds",
    help="Age of the oldest of these, of a thousand at random where there are more; 0 where there is none.",
)
QUEUE: Final = Metric(
    name="reservoir_queue_messages",
    help="Messages that wait in a Celery queue; one names up to 64 deliveries.",
    labels=("queue",),
)
IN_HAND: Final = Metric(
    name="reservoir_messages_in_hand",
    help="Messages that workers had taken and not finished at their last heartbeat.",
)
WORKERS: Final = Metric(
    name="reservoir_workers",
    help="Workers that heard their own heartbeat within the last two minutes.",
)
HEARTBEAT_OLDEST: Final = Metric(
    name="reservoir_worker_heartbeat_oldest_seconds",
    help="The longest time since one of these workers heard its heartbeat.",
)
CIRCUIT_OPEN: Final = Metric(
    name="reservoir_circuit_open",
    help="1 while nobody asks the endpoint's API because it is away or wishes to be left alone.",
    labels=("endpoint",),
)
OPEN: Final = Metric(
    name="reservoir_deliveries_open",
    help="Deliveries that are not settled (received, retrying) or need a person (parked), by reason.",
    labels=("endpoint", "state", "reason"),
)
OPEN_OLDEST: Final = Metric(
    name="reservoir_deliveries_open_oldest_seconds",
    help="Age of the oldest of these deliveries.",
    labels=("endpoint", "state"),
)
OWED: Final = Metric(
    name="reservoir_acknowledgements_outstanding",
    help="Deliveries that are safe, and whose provider does not know it yet (Lockme).",
    labels=("endpoint",),
)
SPOOL_FILES: Final = Metric(
    name="reservoir_spool_files",
    help="Segments of this machine's spool that hold requests; 0 in good weather.",
)
SPOOL_BYTES: Final = Metric(
    name="reservoir_spool_bytes",
    help="Bytes of these segments.",
)
SPOOL_OLDEST: Final = Metric(
    name="reservoir_spool_oldest_seconds",
    help="Age of the oldest request in the spool; 0 where there is none.",
)
SPOOL_CORRUPT: Final = Metric(
    name="reservoir_spool_corrupt_files",
    help="Segments of which not everything could be read; they are kept for a person to look at.",
)

SEEN: Final = (
    *(REACHABLE, PROCESSES, ACK_DEADLINE),
    *(INBOX, INBOX_OLDEST, QUEUE, IN_HAND, WORKERS, HEARTBEAT_OLDEST, CIRCUIT_OPEN),
    *(OPEN, OPEN_OLDEST, OWED),
    *(SPOOL_FILES, SPOOL_BYTES, SPOOL_OLDEST, SPOOL_CORRUPT),
)

ALL: Final = (*COUNTED, *SEEN)
