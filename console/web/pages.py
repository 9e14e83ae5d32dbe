"""The pages: each takes what its address asks for, looks it up, and hands it to a template.

Knows no SQL (`views`), no rule of access (`guard`, `access`), and no look (`templates/`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from typing import Any, Final
from uuid import UUID

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from console.web import shown
from console.web.access import Patience, Sessions
from console.web.acts import Actor, Acts
from console.web.day import day_of
from console.web.filters import (
    DELIVERY_WORDS,
    BookingPlace,
    DeliveryFilter,
    DeliveryPlace,
    Words,
    booking_filter,
    delivery_filter,
    identity,
)
from console.web.guard import LOGIN, Form, cookie_header, form_of, is_here, session_of
from console.web.look import Look
from console.web.overview import lines
from console.web.queue import Queue
from console.web.views import MANY, Count, Row, Views
from console.web.words import advice
from schemas.delivery import State, now
from schemas.endpoints import Config

log = logging.getLogger("reservoir")

AT_ONCE: Final = 1
"""So many deliveries are run again without a question."""
OPEN: Final = frozenset({State.RECEIVED, State.RETRYING})


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The pages, with what they are made from."""

    config: Config
    views: Views
    acts: Acts
    queue: Queue
    sessions: Sessions
    patience: Patience
    look: Look
    has_password: bool

    # --- overview ---

    def overview(self, request: Request) -> Response:
        """What every endpoint does now."""
        door = self.queue.look()
        unread, oldest = self.views.unread()
        return self._page(
            request,
            "overview.html",
            lines=lines(self.views, self.config, door.slowest, now()),
            door=door,
            queue_known=self.queue.is_known,
            unread=unread,
            oldest=oldest,
            totals=self.views.totals(),
        )

    # --- deliveries ---

    def deliveries(self, request: Request) -> Response:
        """The list, the newest first."""
        words = Words(given=request.query_params)
        wanted = delivery_filter(words, now())
        page = self.views.deliveries(wanted, DeliveryPlace.read(words.text("behind")))
        return self._page(
            request,
            "deliveries.html",
            page=page,
            wanted=wanted,
            typed=wanted.typed,
            wrong=words.wrong,
            behind=words.text("behind"),
        )

    def delivery(self, request: Request) -> Response:
        """One delivery: what came, what was asked and answered, and what became of it."""
        row = self._delivery(request)
        told = self.views.told_by(row["id"])
        return self._page(
            request,
            "delivery.html",
            row=row,
            zone=self.look.zone(row["endpoint"]),
            body=shown.body(bytes(row["body"])),
            headers=shown.headers(row["headers"]),
            answers=shown.answers(row["lookup"]),
            told=told,
            changes=self.views.changed_by(row["id"], {each["id"] for each in told}),
            is_open=row["state"] in OPEN,
            advice=advice(row["reason"]) if row["reason"] else None,
        )

    def body(self, request: Request) -> Response:
        """The body, byte for byte, to be kept as a file."""
        row = self._delivery(request)
        return Response(
            bytes(row["body"]),
            media_type="application/octet-stream",
            headers={"content-disposition": f'attachment; filename="{row["id"]}.body"'},
        )

    def _delivery(self, request: Request) -> Row:
        return _found(self.views.delivery, request, "There is no such delivery.")

    # --- retry ---

    async def retry(self, request: Request) -> Response:
        """Runs deliveries again: one at once, several after a question."""
        form = await form_of(request, self.sessions)
        return await run_in_threadpool(self._retry, request, form)

    def _retry(self, request: Request, form: Form) -> Response:
        ids, wanted, chosen = self._chosen(form)
        if not ids:
            raise HTTPException(400, "No delivery was chosen. Go back and choose some.")
        if len(ids) > MANY:
            raise HTTPException(400, f"More than {MANY:,} are chosen. Go back and narrow the filter.")
        ask_again = form.one("ask_again") == "yes"
        confirmed = form.one("confirmed")
        if len(ids) > AT_ONCE and (not confirmed.isdecimal() or len(ids) > int(confirmed)):
            return self._page(
                request,
                "confirm.html",
                count=len(ids),
                ids=[] if wanted else ids,
                wanted=wanted,
                chosen=chosen,
                ask_again=ask_again,
                grown=confirmed.isdecimal(),
                back=_back(form),
            )
        line = self.acts.retry(self._actor(request), ids, chosen, ask_again=ask_again)
        return RedirectResponse(_with(_back(form), note=line), 303)

    def _chosen(self, form: Form) -> tuple[list[UUID], DeliveryFilter | None, str]:
        """The ids, the filter where it was one, and how they were chosen in words. Raises HTTPException."""
        if form.one("choose") != "filter":
            ids = list(dict.fromkeys(filter(None, map(identity, form.all("id")))))
            return ids, None, "by hand"
        words = Words(given={name: form.one(name) for name in DELIVERY_WORDS})
        wanted = delivery_filter(words, now())
        if words.wrong or wanted.is_all:
            raise HTTPException(400, " ".join(words.wrong) or "Narrow the filter first: all deliveries are too many.")
        return self.views.chosen(wanted), wanted, wanted.sentence()

    def parked(self, request: Request) -> Response:
        """What needs a person, by reason."""
        groups: dict[str, list[Row]] = {}
        for row in self.views.parked():
            groups.setdefault(row["reason"] or "", []).append(row)
        ordered = sorted(groups.items(), key=lambda group: -sum(row["deliveries"] for row in group[1]))
        return self._page(
            request,
            "parked.html",
            groups=[
                {
                    "reason": reason,
                    "advice": advice(reason),
                    "rows": rows,
                    "count": sum(row["deliveries"] for row in rows),
                    "oldest": min(row["oldest"] for row in rows),
                    "newest": max(row["newest"] for row in rows),
                }
                for reason, rows in ordered
            ],
        )

    # --- bookings ---

    def bookings(self, request: Request) -> Response:
        """The list, in the order of the visits."""
        words = Words(given=request.query_params)
        wanted = booking_filter(words, self._today(words.text("endpoint")))
        page = self.views.bookings(wanted, BookingPlace.read(words.text("behind")))
        return self._page(
            request,
            "bookings.html",
            page=page,
            wanted=wanted,
            typed=wanted.typed,
            wrong=words.wrong,
            undated=Count(0) if wanted.undated else self.views.undated(),
            behind=words.text("behind"),
        )

    def day(self, request: Request) -> Response:
        """One day, room by room."""
        words = Words(given=request.query_params)
        endpoint = words.text("endpoint")
        today = self._today(endpoint)
        day = words.day("day") or today
        if not date(1900, 1, 2) <= day <= date(9000, 1, 1):
            day = today
        return self._page(
            request,
            "day.html",
            day=day,
            today=today,
            before=day - timedelta(days=1),
            after=day + timedelta(days=1),
            endpoint=endpoint,
            wrong=words.wrong,
            page=day_of(self.views.day(day, endpoint), day, self.look.zone_of_row),
        )

    def booking(self, request: Request) -> Response:
        """One booking: what the table shows, how it came to that, and what was told."""
        row = _found(self.views.booking, request, "There is no such booking.")
        return self._page(
            request,
            "booking.html",
            row=row,
            zone=self.look.zone_of_row(row),
            changes=self.views.changes_of(row["id"]),
            events=self.views.events_of(row["id"]),
        )

    # --- audit, login ---

    def audit(self, request: Request) -> Response:
        """What was done here, and by whom."""
        behind = request.query_params.get("behind", "")
        place = int(behind) if behind.isdecimal() and len(behind) < 19 else None
        return self._page(request, "audit.html", page=self.views.audit(place), behind=behind)

    def ask_password(self, request: Request) -> Response:
        """The page with the one field."""
        if session_of(request).known or not self.has_password:
            return RedirectResponse("/", 303)
        return self._page(request, "login.html", next=request.query_params.get("next", ""), wrong=None)

    async def login(self, request: Request) -> Response:
        """Lets in who knows the password; makes wait who does not."""
        form = await form_of(request, self.sessions)
        actor, wait = self._actor(request), self.patience.wait(_address(request))
        if wait:
            return self._again(request, form, f"Too many wrong passwords. Try again in {wait:.0f} s.", 429, wait)
        if not self.sessions.is_password(form.one("password")):
            self.patience.failed(actor.address)
            log.warning("action=login error=wrong-password address=%s", actor.address)
            await run_in_threadpool(self.acts.note, actor, "login-refused", "wrong password")
            await asyncio.sleep(0.5)
            return self._again(request, form, "That is not the password.", 403)
        self.patience.succeeded(actor.address)
        session = self.sessions.fresh(known=True)
        actor = Actor(session=session.name, address=actor.address)
        await run_in_threadpool(self.acts.note, actor, "login", "done")
        answer = RedirectResponse(form.one("next") if is_here(form.one("next")) else "/", 303)
        answer.headers.append("set-cookie", cookie_header(self.sessions, session, request))
        return answer

    def _again(self, request: Request, form: Form, wrong: str, status: int, wait: float = 0) -> Response:
        answer = self._page(request, "login.html", next=form.one("next"), wrong=wrong)
        answer.status_code = status
        if wait:
            answer.headers["retry-after"] = f"{wait:.0f}"
        return answer

    async def logout(self, request: Request) -> Response:
        """Ends this browser's session."""
        await form_of(request, self.sessions)
        await run_in_threadpool(self.acts.note, self._actor(request), "logout", "done")
        answer = RedirectResponse(LOGIN if self.has_password else "/", 303)
        answer.headers.append("set-cookie", cookie_header(self.sessions, self.sessions.fresh(), request))
        return answer

    # --- what every page has ---

    def error(self, request: Request, status: int, said: str, headers: Mapping[str, str] | None = None) -> Response:
        """A page that says what went wrong, and what to do."""
        token = self._token(request) if hasattr(request.state, "session") else None
        text = self.look.render("error.html", request.url.path, status=status, said=said, token=token, note=None)
        return HTMLResponse(text, status, dict(headers or {}))

    def _page(self, request: Request, template: str, **facts: Any) -> HTMLResponse:
        said = request.query_params.get("note", "")
        note = self.views.noted(int(said), session_of(request).name) if said.isdecimal() and len(said) < 19 else None
        return HTMLResponse(
            self.look.render(template, request.url.path, token=self._token(request), note=note, **facts)
        )

    def _today(self, endpoint: str | None) -> date:
        """The venue's day; of all venues the one where it is the earliest, so that nothing of today is left out."""
        at = now()
        zones = [self.look.zone(endpoint)] if endpoint else [each.zone() for each in self.config]
        return min(at.astimezone(zone or UTC).date() for zone in zones)

    def _token(self, request: Request) -> str:
        return self.sessions.token(session_of(request))

    def _actor(self, request: Request) -> Actor:
        return Actor(session=session_of(request).name, address=_address(request))


def _found(look: Callable[[UUID], Row | None], request: Request, otherwise: str) -> Row:
    """The row that the address names. Raises HTTPException."""
    named = identity(request.path_params["id"])
    row = look(named) if named else None
    if row is None:
        raise HTTPException(404, otherwise)
    return row


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _back(form: Form) -> str:
    """The page that the form was on."""
    return form.one("back") if is_here(form.one("back")) else "/deliveries"


def _with(path: str, *, note: int) -> str:
    """The path, with the line of the audit that the page shall tell of."""
    before, _, query = path.partition("?")
    kept: Sequence[str] = [word for word in query.split("&") if word and not word.startswith("note=")]
    return f"{before}?{'&'.join([*kept, f'note={note}'])}"
