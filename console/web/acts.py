"""What can be done through the console, and who did it. Everything is written to `audit` before it is done.

Deliveries are run again as `reservoir deliveries retry` does it, by `workers.replay`, and read again as
`reservoir replay` does it, by `console.replaying`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from uuid import UUID

from sqlalchemy import Engine, insert, update

from console.replaying import SECONDS, Showing, counts, perform, rehearse
from schemas.delivery import now
from schemas.endpoints import Config
from workers.replay import Replayed, replay
from workers.tables import audit


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """Who it is, as far as a console with one password can know."""

    session: str
    address: str


class Busy(Exception):
    """Deliveries are being read again for somebody else. Try again in some seconds."""


class Acts:
    """The few things that a person can do here."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self._engine = engine
        self._config = config
        self._reading = Lock()

    def note(self, actor: Actor, action: str, outcome: str) -> None:
        """Something that touches no delivery: a login, a logout."""
        self._begin(actor, action, outcome=outcome)

    def retry(self, actor: Actor, ids: Sequence[UUID], chosen: str, *, ask_again: bool) -> int:
        """Runs deliveries again; the number of the line in the audit."""
        chosen = f"{chosen}; ask the provider again" if ask_again else chosen
        line = self._begin(actor, "retry", chosen=chosen, deliveries=list(ids))
        done = replay(self._engine, ids, now(), ask_again=ask_again)
        self._end(line, _outcome(done))
        return line

    def rehearse(self, ids: Sequence[UUID]) -> Showing:
        """What reading deliveries again with today's code would change. Raises Busy."""
        with self._alone():
            return rehearse(self._engine, self._config, ids)

    def replay(self, actor: Actor, ids: Sequence[UUID], chosen: str, seen: str) -> tuple[Showing, Showing]:
        """Reads deliveries again: what that would change now, and what was done. Raises Busy.

        Where the former is not what was seen, or took too long, nothing is done, and both are the same.
        """
        with self._alone():
            planned = rehearse(self._engine, self._config, ids)
            if planned.fingerprint != seen or planned.left:
                return planned, planned
            line = self._begin(actor, "replay", chosen=chosen, deliveries=list(planned.ids))
            done = perform(self._engine, self._config, planned)
            self._end(line, "; ".join(counts(done.outcome)))
            return planned, done

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """It takes a processor for as long as it may, so it is done for one person after the other."""
        if not self._reading.acquire(timeout=SECONDS):
            raise Busy(Busy.__doc__)
        try:
            yield
        finally:
            self._reading.release()

    def _begin(self, actor: Actor, action: str, **more: object) -> int:
        row = {"session": actor.session, "address": actor.address, "action": action, **more}
        with self._engine.begin() as connection:
            line: int = connection.execute(insert(audit).values(row).returning(audit.c.id)).scalar_one()
        return line

    def _end(self, line: int, outcome: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(audit).where(audit.c.id == line).values(outcome=outcome))


def _outcome(done: Replayed) -> str:
    """Those that are held, a worker has in hand; they are left as they are."""
    said = f"again={len(done.again)} held={len(done.held)}"
    return f"{said}: {_some(done.held)}" if done.held else said


def _some(ids: Sequence[UUID]) -> str:
    shown = ", ".join(map(str, ids[:10]))
    return f"{shown} …" if len(ids) > 10 else shown
