"""What can be done through the console, and who did it. Everything is written to `audit` before it is done.

Deliveries are run again as `reservoir deliveries retry` does it: by `workers.replay`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Engine, insert, update

from schemas.delivery import now
from workers.replay import Replayed, replay
from workers.tables import audit


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """Who it is, as far as a console with one password can know."""

    session: str
    address: str


class Acts:
    """The few things that a person can do here."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def note(self, actor: Actor, action: str, outcome: str) -> None:
        """Something that touches no delivery: a login, a logout."""
        self._begin(actor, action, outcome=outcome)

    def retry(self, actor: Actor, ids: Sequence[UUID], chosen: str, *, ask_again: bool) -> int:
        """Runs deliveries again; the number of the line in the audit."""
        chosen = f"{chosen}; ask the provider again" if ask_again else chosen
        line = self._begin(actor, "retry", chosen=chosen, deliveries=list(ids))
        done = replay(self._engine, ids, now(), ask_again=ask_again)
        with self._engine.begin() as connection:
            connection.execute(update(audit).where(audit.c.id == line).values(outcome=_outcome(done)))
        return line

    def _begin(self, actor: Actor, action: str, **more: object) -> int:
        row = {"session": actor.session, "address": actor.address, "action": action, **more}
        with self._engine.begin() as connection:
            line: int = connection.execute(insert(audit).values(row).returning(audit.c.id)).scalar_one()
        return line


def _outcome(done: Replayed) -> str:
    """Those that are held, a worker has in hand; they are left as they are."""
    said = f"again={len(done.again)} held={len(done.held)}"
    return f"{said}: {_some(done.held)}" if done.held else said


def _some(ids: Sequence[UUID]) -> str:
    shown = ", ".join(map(str, ids[:10]))
    return f"{shown} …" if len(ids) > 10 else shown
