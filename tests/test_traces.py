"""A delivery is one trace, from its receipt to its row, told to a real collector over OTLP/HTTP."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from serving import PATIENCE, PLAIN, SHORT, eventually, serving
from test_receiver import CONFIG, SECRET

from console.trial import Trial
from ingest.app import build
from ingest.settings import Settings
from schemas.delivery import new_id
from schemas.endpoints import path
from schemas.spans import first_span, is_chosen
from schemas.tracing import share, spans
from simulators.clock import Clock
from simulators.ledger import Ledger
from simulators.lockme import Lockme
from simulators.venue import Venue, Weather

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Told:
    """A span as the collector has it."""

    part: str
    name: str
    trace: UUID
    identity: int
    parent: int
    start: int
    end: int
    about: dict[str, Any]
    failure: str


@dataclass
class Collector:
    """What it was told."""

    url: str = ""
    spans: list[Told] = field(default_factory=list)
    raw: bytearray = field(default_factory=bytearray)

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            part = _plain(resource.resource.attributes)["service.name"]
            self.spans += [_told(part, span) for scope in resource.scope_spans for span in scope.spans]

    def traces(self) -> dict[UUID, list[Told]]:
        found = defaultdict[UUID, list[Told]](list)
        for span in sorted(self.spans, key=lambda span: (span.start, -span.end)):
            found[span.trace].append(span)
        return found


def _told(part: str, span: Any) -> Told:
    identity, parent = (int.from_bytes(each, "big") for each in (span.span_id, span.parent_span_id))
    return Told(
        part=part,
        name=span.name,
        trace=UUID(bytes=span.trace_id),
        identity=identity,
        parent=parent,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        about=_plain(span.attributes),
        failure=span.status.message,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Listens; this process and those that it starts are told where."""
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield found


@contextmanager
def collecting() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            found.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


# --- ids and shares ------------------------------------------------------------------------------------------------


def test_all_processes_agree_which_deliveries_are_traced_and_it_is_about_that_share() -> None:
    ids = [new_id() for _ in range(4000)]
    assert all(is_chosen(one, 1.0) for one in ids)
    assert not any(is_chosen(one, 0.0) for one in ids)
    tenth = {one for one in ids if is_chosen(one, 0.1)}
    assert 280 < len(tenth) < 520
    assert tenth <= {one for one in ids if is_chosen(one, 0.5)}


def test_a_share_that_makes_no_sense_is_all_of_them() -> None:
    said = {"0.1": 0.1, "": 1.0, "many": 1.0, "7": 1.0, "-1": 0.0}
    assert {word: share({"OTEL_TRACES_SAMPLER_ARG": word}) for word in said} == said


def test_the_first_span_has_an_id_that_follows_from_the_deliverys() -> None:
    found = {first_span(new_id()) for _ in range(1000)}
    assert len(found) == 1000
    assert all(0 < one < 1 << 64 for one in found)


def test_traces_are_off_by_default_and_then_nothing_of_them_is_loaded() -> None:
    assert spans("receiver", {}) is None
    """redis-py looks for parts of OpenTelemetry by itself; what sends spans is not among them."""
    code = (
        "import sys, ingest.traces, workers.observed; ingest.traces.traced(None); workers.observed.marked({}); "
        "print([name for name in sys.modules if name == 'schemas.otel' or name.startswith('opentelemetry.exporter')])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True, env={}, timeout=60
    )
    assert ended.stdout.strip() == "[]"


def test_the_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "schemas.otel", None)
    assert spans("receiver", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) is None
    assert "install the extra `traces`" in caplog.text


# --- the receiver's part --------------------------------------------------------------------------------------------


def receive(settings: Settings, bodies: list[bytes]) -> list[int]:
    """What is answered."""
    with serving(build(settings), SHORT) as url, httpx.Client(**PLAIN, timeout=PATIENCE) as client:
        hook = url + path(SECRET, CONFIG.endpoints["studio"])
        return [client.post(hook, content=body).status_code for body in bodies]


def test_the_receiver_tells_when_a_delivery_came_and_how_it_was_kept(
    collector: Collector, redis_url: str, redis: Any
) -> None:
    settings = Settings(redis_url=redis_url, secret=SECRET, config=CONFIG, patience=PATIENCE)
    assert receive(settings, [b"12345"]) == [200]
    (kept,) = redis.hkeys("reservoir:inbox")
    assert eventually(lambda: len(collector.spans) == 2)
    received, committed = collector.traces()[UUID(kept.decode())]
    assert (received.name, committed.name) == ("receive", "commit")
    assert (received.part, received.parent, received.identity) == ("reservoir-receiver", 0, committed.parent)
    assert committed.about["reservoir.kept"] == "redis"
    assert received.about["http.request.body.size"] == 5
    assert received.about["reservoir.endpoint"] == "studio"
    assert received.start <= committed.start <= committed.end <= received.end
    assert (received.failure, committed.failure) == ("", "")


def test_what_could_not_be_kept_is_told_as_a_failure(collector: Collector) -> None:
    assert receive(Settings(redis_url="redis://127.0.0.1:1", secret=SECRET, config=CONFIG), [b"{}"]) == [503]
    assert eventually(lambda: len(collector.spans) == 2)
    assert {span.failure for span in collector.spans} == {"not-durable"}


def test_a_collector_that_is_away_keeps_nobody_waiting(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    settings = Settings(redis_url=redis_url, secret=SECRET, config=CONFIG, patience=PATIENCE)
    begun = time.monotonic()
    assert receive(settings, [b"{}"] * 20) == [200] * 20
    assert time.monotonic() - begun < PATIENCE / 2


# --- the whole way --------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(240)
def test_a_delivery_is_one_trace_from_receipt_to_row(collector: Collector, tmp_path: Path) -> None:
    """Receiver and worker as `reservoir up` starts them; Lockme is looked up and told that it is safe."""
    ledger, clock = Ledger(), Clock(datetime.now(UTC).replace(microsecond=0), 2000.0)
    venue = Lockme(endpoint="vault", hook_url="", ledger=ledger, clock=clock, rng=Random("traces"), weather=Weather())

    async def live() -> list[dict[str, Any]]:
        async with Trial([venue], ledger, tmp_path) as trial:
            await venue.busy_day(2)
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline:
                rows: list[dict[str, Any]] = await trial.command("deliveries", "list", "--json")
                applied = [row for row in rows if row["state"] == "applied" and row["acknowledged_at"]]
                if applied and all(whole(collector.traces()[UUID(row["id"])]) for row in applied):
                    return applied
                await asyncio.sleep(0.5)
            return []

    applied = asyncio.run(live())
    assert applied, json.dumps([[span.name for span in trace] for trace in collector.traces().values()])
    for row in applied:
        trace = collector.traces()[UUID(row["id"])]
        (first,) = [span for span in trace if span.name == "receive"]
        assert first.identity == first_span(UUID(row["id"]))
        assert {span.parent for span in trace} == {0, first.identity}
        parts = {span.name: span.part for span in trace}
        assert {name for name, part in parts.items() if part == "reservoir-receiver"} == {"receive", "commit"}
        ends = {span.name: span.end for span in trace}
        order = [ends[name] for name in ("land", "look up", "save", "acknowledge")]
        assert order == sorted(order)
        began = {span.name: span.start for span in trace}
        assert began["receive"] <= began["commit"] < began["land"]  # a worker may have it before the receiver knows
        asked = {span.about["reservoir.call"] for span in trace if span.name in ("look up", "acknowledge")}
        assert {"message", "acknowledge"} <= asked
        assert [span.about["reservoir.state"] for span in trace if span.name == "save"][-1] == "applied"
    assert_nothing_personal(collector, venue, ledger)


def whole(trace: list[Told]) -> bool:
    return {"receive", "commit", "land", "look up", "save", "acknowledge"} <= {span.name for span in trace}


def assert_nothing_personal(collector: Collector, venue: Venue, ledger: Ledger) -> None:
    """No secret, no URL, no guest's data has reached the collector."""
    columns = ("customer_name", "customer_email", "customer_phone", "note")
    guests = {str(row[column]) for row in ledger.truth.values() for column in columns if row.get(column)}
    personal = {*venue.secrets().values(), venue.hook_url.rsplit("/", 1)[1], "://"} | {
        one for one in guests if len(one) > 5
    }
    assert len(personal) > 3
    assert [text for text in personal if text.encode() in collector.raw] == []
