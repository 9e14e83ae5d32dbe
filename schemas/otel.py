"""Spans by OpenTelemetry's SDK, sent over OTLP/HTTP in the background. Loaded by `schemas.tracing` where traces are on.

Its own environment variables hold (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_BSP_…`), all but its
sampler's name: a share of the deliveries is chosen by their ids.
"""

from __future__ import annotations

import os
import threading
from typing import Final
from uuid import UUID

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from schemas.spans import RECEIVE, Attributes, first_span, is_chosen

PATIENCE: Final = 2.0
"""Seconds for a collector to take a batch, where the environment names none: the end of a process waits for it."""


class OpenTelemetry:
    """See the module. For all threads of one process."""

    def __init__(self, part: str, share: float) -> None:
        self._share = share
        self._ids = _Ids()
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"reservoir-{part}"}
        self._provider = TracerProvider(
            resource=Resource.create({**named, "reservoir.part": part}), sampler=ALWAYS_ON, id_generator=self._ids
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=_patience())))
        self._tracer = self._provider.get_tracer("reservoir")

    def receipt(self, delivery_id: UUID, start: int, end: int, about: Attributes, failure: str | None) -> None:
        if is_chosen(delivery_id, self._share):
            with self._ids.of(delivery_id):
                span = self._tracer.start_span(RECEIVE, kind=SpanKind.SERVER, start_time=start, attributes=dict(about))
            _end(span, end, failure)

    def step(
        self, name: str, delivery_id: UUID, start: int, end: int, about: Attributes, failure: str | None = None
    ) -> None:
        if is_chosen(delivery_id, self._share):
            root = SpanContext(
                delivery_id.int, first_span(delivery_id), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
            )
            parent = set_span_in_context(NonRecordingSpan(root))
            span = self._tracer.start_span(name, context=parent, start_time=start, attributes=dict(about))
            _end(span, end, failure)

    def flush(self) -> None:
        self._provider.force_flush()


def _end(span: Span, at: int, failure: str | None) -> None:
    if failure is not None:
        span.set_status(Status(StatusCode.ERROR, failure))
    span.end(at)


def _patience() -> float | None:
    """None: the library reads what the environment says."""
    named = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
    return None if any(os.environ.get(name) for name in named) else PATIENCE


class _Ids(RandomIdGenerator):
    """Random ids; for the first span of a delivery those that follow from its id."""

    def __init__(self) -> None:
        self._now = threading.local()

    def of(self, delivery_id: UUID) -> _Ids:
        self._now.delivery = delivery_id
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._now.delivery = None

    def generate_trace_id(self) -> int:
        delivery: UUID | None = getattr(self._now, "delivery", None)
        return delivery.int if delivery else super().generate_trace_id()

    def generate_span_id(self) -> int:
        delivery: UUID | None = getattr(self._now, "delivery", None)
        return first_span(delivery) if delivery else super().generate_span_id()
