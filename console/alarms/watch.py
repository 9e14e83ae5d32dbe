"""The process that watches: it looks every 15 seconds, notes what it saw, and has people told.

Each channel has a thread that sends what is in its line: one that hangs or fails holds up neither the others nor the
looks. Survives Redis and PostgreSQL being away; that is an alarm too.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from console.alarms.channels import NotSent, host, send
from console.alarms.findings import POSTGRES, judge
from console.alarms.ledger import claim, not_sent, note, sent
from console.alarms.looking import Eyes, redis_client
from console.alarms.settings import Target, targets
from console.alarms.stopgap import Stopgap
from schemas.delivery import now
from schemas.endpoints import Config
from schemas.logs import about, log
from workers.database import engine
from workers.settings import needed

EVERY: Final = 15.0
"""Seconds between two looks."""
IDLE: Final = 1.0
"""Seconds between two looks at the line of a channel."""


class Sender(threading.Thread):
    """Sends what is due on one channel, one notice after the other."""

    def __init__(self, channel: str, target: Target, database: Engine, over: threading.Event) -> None:
        super().__init__(name=f"notify-{channel}", daemon=True)
        self._channel, self._target, self._database, self._over = channel, target, database, over

    def run(self) -> None:
        while not self._over.wait(IDLE):
            try:
                while not self._over.is_set() and self._send_next():
                    pass
            except SQLAlchemyError as error:  # the lease ends, and it is tried again
                log.warning("notify-failed", channel=self._channel, error=type(error).__name__)

    def _send_next(self) -> bool:
        """Whether there was one. Raises SQLAlchemyError."""
        claimed = claim(self._database, self._channel, now())
        if claimed is None:
            return False
        try:
            said = send(self._target, claimed.notice)
        except NotSent as error:
            again = not_sent(self._database, claimed, str(error), now())
            with about(channel=self._channel, notice=claimed.notice.id):
                log.error("notify-failed", tries=claimed.attempts, error=str(error), next=again)
        else:
            sent(self._database, claimed, now())
            log.info("notified", channel=self._channel, notice=claimed.notice.id, said=said)
        return True


@dataclass
class Watch:
    """What one look does."""

    eyes: Eyes
    stopgap: Stopgap
    channels: tuple[str, ...]

    def look(self) -> None:
        """Once; whatever is away."""
        world = self.eyes.look(now())
        judgement = judge(world)
        for finding in judgement.findings:
            if finding.kind == POSTGRES:
                log.error("look-failed", what="postgres", error=finding.detail)
                self.stopgap.away(finding, world.now)
                return
        try:
            self.stopgap.back(self.eyes.engine, world.now)
            news = note(self.eyes.engine, judgement, self.channels, world.now)
        except SQLAlchemyError as error:
            log.error("look-failed", what="note", error=type(error).__name__)
            return
        for incident, what in news:
            log.warning("alarm", kind=incident.kind, subject=incident.subject, news=what)


def watch(config: Config, state_dir: Path, environment: Mapping[str, str] = os.environ, every: float = EVERY) -> None:
    """Until SIGTERM or Ctrl-C. Raises ConfigError."""
    over = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    run(config, spool_of(environment, state_dir), environment, over, every)


def run(
    config: Config, spool: Path | None, environment: Mapping[str, str], over: threading.Event, every: float
) -> None:
    """Looks until it is over. Raises ConfigError."""
    told = targets(config, environment)
    redis_url, database_url = (needed(environment, name) for name in ("REDIS_URL", "DATABASE_URL"))
    if not told:
        log.warning("no-channel", mend="nobody is told of an incident; name a channel in [alarms]: docs/alarms.md")
    with ExitStack() as resources:
        database = engine(database_url, pool_size=2 + len(told), patience="60s")
        resources.callback(database.dispose)
        redis = resources.enter_context(redis_client(redis_url))
        eyes = Eyes(endpoints=config.endpoints, engine=database, redis=redis, spool=spool, host=host())
        watching = Watch(eyes, Stopgap(redis, told, eyes.host), tuple(told))
        senders = [Sender(channel, target, database, over) for channel, target in told.items()]
        for sender in senders:
            sender.start()
        log.info("watching", channels=list(told), endpoints=len(config.endpoints))
        while not over.is_set():
            watching.look()
            over.wait(every)
        for sender in senders:
            sender.join(timeout=15)


def spool_of(environment: Mapping[str, str], state_dir: Path) -> Path | None:
    """Where the receivers of this machine spool; None where they do not."""
    named = environment.get("RESERVOIR_SPOOL_DIR", "")
    return None if named == "off" else Path(named or state_dir / "spool")
