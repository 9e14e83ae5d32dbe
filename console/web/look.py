"""The templates, and what all of them may use. Everything that they are given is escaped."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from console.web import shown
from console.web.views import Count, Row
from console.web.words import REASONS, STATES
from schemas.booking import Status
from schemas.endpoints import Config
from workers import registry

HERE: Final = Path(__file__).parent
FILTERS: Final = ("clean", "code", "day", "document", "money", "number", "plain", "size", "span")


class Look:
    """Templates, filled in."""

    def __init__(self, config: Config, clock: Callable[[], datetime], *, has_password: bool) -> None:
        self._config = config
        self._clock = clock
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {name: getattr(shown, name) for name in FILTERS}
        self._templates.filters |= {"count": _count, "title_of": title_of}
        self._templates.globals |= {
            "clock": shown.clock,
            "hours": shown.hours,
            "zone": self.zone,
            "zone_of_row": self.zone_of_row,
            "endpoints": sorted(config.endpoints),
            "states": STATES,
            "statuses": [status.value for status in Status],
            "reasons": sorted(REASONS),
            "has_password": has_password,
        }

    def render(self, template: str, path: str, **facts: Any) -> str:
        """A page; `path` is where it stands."""
        at = self._clock()
        telling = {name: partial(getattr(shown, name), now=at) for name in ("moment", "ago", "changed")}
        return self._templates.get_template(template).render({"now": at, **telling, "path": path, **facts})

    def zone(self, endpoint: str | None) -> ZoneInfo | None:
        """An endpoint's time zone; None where it has none, or is not configured."""
        found = self._config.endpoints.get(endpoint or "")
        return found.zone() if found else None

    def zone_of_row(self, row: Row) -> ZoneInfo | None:
        """A booking's time zone, else its endpoint's."""
        return shown.zone_of(row["timezone"], self.zone(row["endpoint"]))


def title_of(provider: str) -> str:
    """A provider's name as it writes it."""
    found = registry.discover().get(provider)
    return found.title if found else provider


def _count(count: Count) -> Markup:
    said = shown.about(count.number) if count.how == "about" else shown.number(count.number)
    return Markup("{} {}").format(count.how, said) if count.how else Markup("{}").format(said)
