"""`make screens`: the pictures of the console in docs/screens, taken anew.

The week of `tests.week` at a fixed moment, the real console over real PostgreSQL and Redis, a real browser. What is
shown is always the same; how its letters are drawn is the machine's. Every page in every form, to be looked at;
docs/console.md shows some of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page
from redis import Redis
from sqlalchemy import Engine, text

from console.services import Embedded
from console.web.app import build
from schemas.acks import ACKS
from tests import week
from tests.browsing import settings_of
from tests.chromium import FOUND, MISSING, PHONE, THEMES, chromium, log_in, visitor
from tests.serving import serving
from workers.database import engine
from workers.migrate import upgrade

AT = datetime(2026, 11, 21, 15, 40, 12, tzinfo=UTC)
"""A Saturday afternoon."""
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "screens"
SIZES = {"desktop": {"width": 1200, "height": 640}, "phone": PHONE}
COLOURS = 256


NAMED = {
    "parked": "SELECT id FROM deliveries WHERE reason = 'malformed'",
    "applied": "SELECT max(id::text) FROM deliveries WHERE endpoint = 'vault-warsaw' AND state = 'applied'",
    "booking": """
        SELECT booking_id FROM booking_changes JOIN bookings ON bookings.id = booking_id
        WHERE endpoint = 'harbour-tours' GROUP BY 1 ORDER BY count(*) DESC, booking_id LIMIT 1
    """,
}


def addresses(database: Engine) -> Mapping[str, str]:
    """Every page by a name; those of a row lead to one that has much to say."""
    with database.connect() as connection:
        named = {name: connection.execute(text(query)).scalars().first() for name, query in NAMED.items()}
    return {
        "login": "/login",
        "overview": "/",
        "deliveries": "/deliveries",
        "bookings": "/bookings",
        "day": "/day",
        "parked": "/parked",
        "audit": "/audit",
        "error": "/nowhere",
        "deliveries-filtered": "/deliveries?state=parked",
        "deliveries-none": "/deliveries?q=nobody",
        "delivery-parked": f"/deliveries/{named['parked']}",
        "delivery-applied": f"/deliveries/{named['applied']}",
        "booking": f"/bookings/{named['booking']}",
        "confirm": "/parked",
        "replay": "/replay?state=parked",
    }


@contextmanager
def console_at(at: datetime) -> Iterator[tuple[str, Engine, Redis]]:
    """The console, empty, where it is always that moment."""
    with tempfile.TemporaryDirectory(prefix="reservoir-screens-") as folder, Embedded(Path(folder)) as services:
        upgrade(services.database_url)
        database = engine(services.database_url, pool_size=4)
        given: Any = {"redis_url": services.redis_url, "endpoints": week.ENDPOINTS.values()}
        with serving(build(settings_of(services.database_url, **given), clock=lambda: at)) as url:
            yield url, database, Redis.from_url(services.redis_url)
        database.dispose()


def cookies(browser: Browser, url: str) -> Any:
    """Of somebody who has logged in."""
    with visitor(browser, url) as page:
        log_in(page)
        return page.context.storage_state()


def take(page: Page, name: str, address: str) -> bytes:
    """The page as it stands on the screen; as long as it is where nobody would scroll to understand it."""
    page.goto(address)
    if name == "confirm":
        page.get_by_role("button", name="Run again").first.click()
    return page.screenshot(full_page=name not in ("deliveries", "bookings"), animations="disabled")


def small(picture: bytes) -> bytes:
    """With a palette, as pages have few colours."""
    made = BytesIO()
    Image.open(BytesIO(picture)).convert("RGB").quantize(
        COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    ).save(made, "PNG", optimize=True)
    return made.getvalue()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with console_at(AT) as (url, database, redis), chromium() as browser:
        state = cookies(browser, url)
        with database.begin() as connection:
            connection.exec_driver_sql("DELETE FROM audit")
        week.tell(database, AT)
        redis.hset(ACKS, mapping=week.acks(AT))
        pages = addresses(database)
        for size, theme in product(SIZES, THEMES):
            settings = {"viewport": SIZES[size], "color_scheme": theme}
            with (
                visitor(browser, url, storage_state=state, **settings) as known,
                visitor(browser, url, **settings) as stranger,
            ):
                for name, address in pages.items():
                    picture = small(take(stranger if name == "login" else known, name, address))
                    file = folder / f"{name}-{size}-{theme}.png"
                    file.write_bytes(picture)
                    print(f"{file.name}  {len(picture) / 1024:.0f} KiB")


if __name__ == "__main__":
    if FOUND is None:
        sys.exit(f"screens: {MISSING}")
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
