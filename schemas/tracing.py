"""Whether spans are collected, and where they go then.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set; then the extra `traces` must be installed. Light: OpenTelemetry is
loaded only where traces are on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from schemas.logs import log
from schemas.spans import Spans

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
SHARE: Final = "OTEL_TRACES_SAMPLER_ARG"
"""Which share of the deliveries is traced, from 0 to 1."""


def spans(part: str, environment: Mapping[str, str] = os.environ) -> Spans | None:
    """Where this process's spans go; None where nobody collects them. `part`: receiver, worker."""
    if not any(environment.get(name) for name in ENDPOINTS):
        return None
    try:
        from schemas.otel import OpenTelemetry
    except ImportError as error:
        log.warning("not-traced", missing=error.name, mend="install the extra `traces`")
        return None
    return OpenTelemetry(part, share(environment))


def share(environment: Mapping[str, str]) -> float:
    """All of them, where nothing else is said that makes sense."""
    try:
        return min(1.0, max(0.0, float(environment.get(SHARE) or 1.0)))
    except ValueError:
        return 1.0
