"""The pages: each takes what its address asks for, looks it up, and hands it to a template.

Knows no SQL (`views`), no rule of access (`guard`, `access`), and no look (`templates/`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from console import replaying
from console.replaying import Showing
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
from console.web.words import advice, mend_of
from schemas.delivery import State
from schemas.endpoints import Config
from schemas.logs import log
from workers.replay import Difference

AT_ONCE: Final = 1
"""So many deliveries are run again without a question."""
MOST_SHOWN: Final = 200
"""So many bookings and so many deliveries of a replay are shown."""
REMOVED: Final = (
    "This booking is in the table no more: when its deliveries were read again, none of them spoke of it. "
    "What it showed before stands in `booking_changes`."
)
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
    clock: Callable[[], datetime]
    has_password: bool

    # --- overview ---

    def overview(self, request: Request) -> Response:
        """What every endpoint does now."""
        at = self.clock()
        door = self.queue.look(at)
        unread, oldest = self.views.unread()
        return self._page(
            request,
            "overview.html",
            lines=lines(self.views, self.config, door.slowest, at),
            door=door,
            queue_known=self.queue.is_known,
            unread=unread,
            oldest=oldest,
            totals=self.views.totals(),
            alarms=[{**row, "mend": mend_of(row["kind"])} for row in self.views.incidents(at)],
        )

    # --- deliveries ---

    def deliveries(self, request: Request) -> Response:
        """The list, the newest first."""
        words = Words(given=request.query_params)
        wanted = delivery_filter(words, self.clock())
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
        ids, wanted = self._chosen(form, by_filter=form.one("choose") == "filter")
        chosen = _said(wanted)
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

    def _chosen(self, form: Form, *, by_filter: bool) -> tuple[list[UUID], DeliveryFilter | None]:
        """The ids, and the filter where it was one. Raises HTTPException."""
        if not by_filter:
            return _named(form), None
        wanted, wrong = self._wanted(form)
        if wrong or wanted.is_all:
            raise HTTPException(400, " ".join(wrong) or "Narrow the filter first: all deliveries are too many.")
        return self.views.chosen(wanted), wanted

    def _wanted(self, form: Form) -> tuple[DeliveryFilter, Sequence[str]]:
        """The filter that a form carries, and what is wrong with it."""
        words = Words(given={name: form.one(name) for name in DELIVERY_WORDS})
        return delivery_filter(words, self.clock()), words.wrong

    # --- replay ---

    async def rehearse(self, request: Request) -> Response:
        """What today's code would write of deliveries: of the chosen ones, or of all that the address describes."""
        posted = request.method == "POST"
        form = await form_of(request, self.sessions) if posted else Form(_described(request.query_params))
        return await run_in_threadpool(self._rehearse, request, form)

    def _rehearse(self, request: Request, form: Form) -> Response:
        ids, wanted = self._chosen(form, by_filter=not form.all("id"))
        would = self.acts.rehearse(ids[: replaying.AT_ONCE])
        return self._showing(request, form, would, wanted, more=len(ids) > replaying.AT_ONCE)

    async def replay(self, request: Request) -> Response:
        """Writes what was shown; where it has become something else meanwhile, that is shown instead."""
        form = await form_of(request, self.sessions)
        return await run_in_threadpool(self._replay, request, form)

    def _replay(self, request: Request, form: Form) -> Response:
        ids = _named(form)
        if not 0 < len(ids) <= replaying.AT_ONCE:
            raise HTTPException(400, f"Choose between 1 and {replaying.AT_ONCE} deliveries.")
        described, _ = self._wanted(form)
        wanted = described if described.typed else None
        would, done = self.acts.replay(self._actor(request), ids, _said(wanted), form.one("seen"))
        surprise = would.fingerprint != (done.fingerprint if done.in_earnest else form.one("seen"))
        return self._showing(request, form, done, wanted, surprise=surprise)

    def _showing(
        self,
        request: Request,
        form: Form,
        showing: Showing,
        wanted: DeliveryFilter | None,
        *,
        more: bool = False,
        surprise: bool = False,
    ) -> Response:
        """`more`: there are others that are as wanted; `surprise`: it is not what was shown before."""
        outcome = showing.outcome
        return self._page(
            request,
            "replay.html",
            showing=showing,
            outcome=outcome,
            differences=_differences(showing, self.views.told_of(showing.done)),
            unread=Counter(outcome.unread.values()),
            advice=advice,
            wanted=wanted,
            chosen=_said(wanted),
            back=_back(form, f"/deliveries?{wanted.address()}" if wanted else "/deliveries"),
            more=more,
            command=self._command(wanted, showing) if wanted and (more or showing.left) else None,
            surprise=surprise,
            at_once=replaying.AT_ONCE,
            seconds=replaying.SECONDS,
            most=MOST_SHOWN,
        )

    def _command(self, wanted: DeliveryFilter, showing: Showing) -> str | None:
        """What shows all that are as wanted, on a terminal; None for a search, which the command does not know."""
        if wanted.text is not None or not showing.ids:
            return None
        first = self.views.delivery(showing.ids[0])
        since = {"since": f"{first['received_at'].astimezone(UTC).date()}"} if first else {}
        return replaying.command({**since, **wanted.typed})

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
        named = identity(request.path_params["id"])
        changes = self.views.changes_of(named) if named else ()
        row = self.views.booking(named) if named else None
        if row is None:
            raise HTTPException(410, REMOVED) if changes else HTTPException(404, "There is no such booking.")
        return self._page(
            request,
            "booking.html",
            row=row,
            zone=self.look.zone_of_row(row),
            changes=changes,
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
            log.warning("login-refused", address=actor.address)
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
        at = self.clock()
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


def _named(form: Form) -> list[UUID]:
    """The deliveries whose ids the form has."""
    return list(dict.fromkeys(filter(None, map(identity, form.all("id")))))


def _described(words: Mapping[str, str]) -> dict[str, list[str]]:
    """The words of an address that describe deliveries, as those of a form."""
    return {name: [words[name]] for name in DELIVERY_WORDS if name in words}


def _differences(showing: Showing, told: Mapping[UUID, Sequence[Row]]) -> list[Row]:
    """Each booking that differs, with its name, whether it can be looked at, and the deliveries behind it: those of the
    chosen ones that tell of it, and those that it is shown as in, before and after."""
    tellers: dict[UUID, list[UUID]] = {}
    for delivery_id, rows in told.items():
        for row in rows:
            tellers.setdefault(row["id"], []).append(delivery_id)
    names = {row["id"]: row["reference"] for rows in told.values() for row in rows}
    away = "removed" if showing.in_earnest else "created"
    return [
        {
            "id": one.booking_id,
            "name": names.get(one.booking_id) or one.external_id,
            "endpoint": one.endpoint,
            "kind": one.kind,
            "is_there": one.kind != away,
            "deliveries": list(dict.fromkeys([*tellers.get(one.booking_id, []), *_shown_as(one)])),
            "diff": replaying.as_json(one)["fields"],
        }
        for one in showing.outcome.differences
    ]


def _shown_as(difference: Difference) -> list[UUID]:
    return [identity for identity in difference.fields.get("delivery_id", ()) if identity is not None]


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _back(form: Form, otherwise: str = "/deliveries") -> str:
    """The page that the form was on."""
    return form.one("back") if is_here(form.one("back")) else otherwise


def _said(wanted: DeliveryFilter | None) -> str:
    """How deliveries were chosen."""
    return wanted.sentence() if wanted else "by hand"


def _with(path: str, *, note: int) -> str:
    """The path, with the line of the audit that the page shall tell of."""
    before, _, query = path.partition("?")
    kept: Sequence[str] = [word for word in query.split("&") if word and not word.startswith("note=")]
    return f"{before}?{'&'.join([*kept, f'note={note}'])}"
