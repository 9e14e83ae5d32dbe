"""`reservoir lockme login` and `lockme token`: the way to a kept token, against the simulated Lockme over HTTP."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import httpx
import pytest
from serving import PLAIN, serving
from sqlalchemy import Engine

from schemas.delivery import now
from simulators.clock import Clock
from simulators.ledger import Ledger
from simulators.lockme import Lockme
from simulators.server import build, mount_path
from tests.commands import Done, bare_environment, run
from workers.seal import Seal
from workers.tokens import Token, Tokens

SECRET = "0123456789abcdef0123456789abcdef"
COMMAND = [Path(sys.executable).with_name("reservoir"), "lockme"]


@dataclass
class Room:
    """An endpoint at the simulated Lockme, and what the command needs to find it."""

    folder: Path
    settings: dict[str, str]
    tokens: Tokens

    @property
    def environment(self) -> dict[str, str]:
        return {**bare_environment(), **self.settings}

    @contextmanager
    def waiting(self, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """The login that waits for the browser, and the address that it shows."""
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [*COMMAND, *words], cwd=self.folder, env=self.environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ) as popen:
            stop = threading.Timer(60, popen.kill)
            stop.start()
            assert popen.stdout is not None
            address = next((line.strip() for line in popen.stdout if line.startswith("  http")), "")
            assert address, popen.communicate()[1]
            yield popen, address
            popen.wait()
            stop.cancel()

    def token(self) -> Token | None:
        return self.tokens.get("room")


@pytest.fixture
def room(tmp_path: Path, database_url: str, engine: Engine) -> Iterator[Room]:
    clock = Clock(datetime.now(UTC), 1.0)
    venue = Lockme(endpoint="room", hook_url="", ledger=Ledger(), clock=clock, rng=Random("room"), oauth=True)
    with serving(build([venue])) as base:
        settings = ['provider = "lockme"', 'timezone = "Europe/Warsaw"', f'api_url = "{base}{mount_path(venue)}"']
        (tmp_path / "reservoir.toml").write_text("\n".join(["[endpoints.room]", *settings]))
        secrets = {f"RESERVOIR_ROOM_{what.upper()}": value for what, value in venue.secrets().items()}
        ours = {**secrets, "DATABASE_URL": database_url, "RESERVOIR_SECRET": SECRET}
        yield Room(tmp_path, ours, Tokens(engine, Seal(SECRET), now))


def browser(address: str, *, follow: bool = True) -> httpx.Response:
    """A person who says yes: Lockme sends the browser back to where we listen."""
    with httpx.Client(**PLAIN, follow_redirects=follow) as client:
        return client.get(address)


def test_a_login_in_the_browser(room: Room) -> None:
    """The address, the person's yes, the way back to the loopback interface, the token in Postgres."""
    with room.waiting("login", "room", "--port", "0") as (popen, address):
        assert "Done" in browser(address).text
        popen.wait()
        assert popen.stdout is not None
        assert "the token of room is kept" in popen.stdout.read()
    token = room.token()
    assert token is not None
    assert token.refresh_token


def test_a_login_on_a_machine_without_a_browser(room: Room) -> None:
    """The address that the browser ended at is pasted, also where it shows an error."""
    with room.waiting("login", "room", "--paste") as (popen, address):
        ended_at = browser(address, follow=False).headers["location"]
        popen.communicate(ended_at + "\n")
    assert popen.returncode == 0
    assert room.token() is not None


def test_an_answer_to_another_question_is_refused(room: Room) -> None:
    """Somebody else's code must not become our token (RFC 6749, 10.12)."""
    with room.waiting("login", "room", "--paste") as (popen, _):
        _, said = popen.communicate("http://127.0.0.1:8976/?code=theirs&state=theirs\n")
    assert popen.returncode == 1
    assert said == "reservoir: this is no answer to this login; start it again\n"
    assert room.token() is None


def test_a_token_from_the_panel(
    room: Room, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pasted as JSON; what is no token is refused in one line and keeps nothing."""
    monkeypatch.chdir(room.folder)

    def pasted(typed: str) -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        return run(capsys, "lockme", "token", "room", **room.settings)

    refused = pasted("no token")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert room.token() is None
    panel = {"token_type": "Bearer", "access_token": "a", "refresh_token": "r", "expires": int(time.time()) + 3600}
    assert pasted(json.dumps(panel)).returncode == 0
    token = room.token()
    assert token is not None
    assert (token.access_token, token.refresh_token) == ("a", "r")
