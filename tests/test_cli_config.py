"""A bad configuration stops at the start with one line that names file, key and mend; so does a mistyped name."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from schemas.endpoints import load
from schemas.endpoints import path as hook_path
from tests.commands import Command, Done, bare_environment, run

GOOD = """
[endpoints.arcade-vienna]
provider = "synthesisvr"
timezone = "Europe/Vienna"

[endpoints.desk]
provider = "checkfront"
timezone = "Europe/Berlin"
"""


@pytest.fixture
def reservoir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in a directory of its own, with an environment that holds nothing of ours."""
    monkeypatch.chdir(tmp_path)
    return partial(run, capsys)


def complaint(done: Done, code: int) -> str:
    """The one line on stderr."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("reservoir: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize(
    ("document", "environment", "says"),
    [
        (
            '[endpoints.desk]\nprovider = "checkfrnt"\n',
            {},
            ["reservoir.toml: endpoints.desk.provider: 'checkfrnt' is unknown", "did you mean checkfront?"],
        ),
        (
            '[endpoints.desk]\nprovider = "checkfront"\ntimezone = "Europe/Berlin"\n',
            {"RESERVOIR_DESK_API_KEY": "key"},
            ["reservoir.toml: endpoints.desk: RESERVOIR_DESK_API_SECRET is not set"],
        ),
        (
            '[endpoints.desk]\nprovider = "checkfront"\ntimezone = "Europe/Berln"\n',
            {},
            ["reservoir.toml: endpoints.desk.timezone: 'Europe/Berln'", "did you mean Europe/Berlin?"],
        ),
        (
            '[endpoints.desk]\nprovider = "checkfront"\ntime_zone = "Europe/Berlin"\n',
            {},
            ["reservoir.toml: endpoints.desk.", "time"],
        ),
        (
            '[endpoints.arcade]\nprovider = "synthesisvr"\ntimezone = "Europe/Vienna"\nvenue = "x"\n',
            {},
            ["reservoir.toml: endpoints.arcade.venue: unknown key", "remove it, or use one of"],
        ),
        ('[endpoints.desk\nprovider = "x"\n', {}, ["reservoir.toml: is no TOML", "line 1", "mend that line"]),
        ("", {}, ["reservoir.toml: endpoints: there is none", "add [endpoints.my-venue]"]),
        (
            '[endpoints.room]\nprovider = "lockme"\ntimezone = "Europe/Warsaw"\n',
            {"RESERVOIR_ROOM_CLIENT_ID": "id"},
            ["reservoir.toml: endpoints.room: RESERVOIR_ROOM_CLIENT_SECRET is not set"],
        ),
    ],
    ids=["provider", "half-a-secret", "time-zone", "no-time-zone", "unknown-key", "no-toml", "empty", "half-an-oauth"],
)
@pytest.mark.parametrize("command", ["up", "urls"])
def test_a_bad_configuration_is_one_line(
    reservoir: Command,
    tmp_path: Path,
    command: str,
    document: str,
    environment: Mapping[str, str],
    says: list[str],
) -> None:
    """And nothing has been started or made by then."""
    (tmp_path / "reservoir.toml").write_text(document, encoding="utf-8")
    line = complaint(reservoir(command, **environment), code=2)
    for words in says:
        assert words in line
    assert not (tmp_path / ".reservoir").exists()


def test_a_missing_file(reservoir: Command) -> None:
    """The line names the file that was looked for."""
    assert "elsewhere.toml: no such file" in complaint(reservoir("up", "--config", "elsewhere.toml"), code=2)


def test_a_secret_that_is_too_short(reservoir: Command, tmp_path: Path) -> None:
    """The URLs would be guessable."""
    (tmp_path / "reservoir.toml").write_text(GOOD, encoding="utf-8")
    assert "RESERVOIR_SECRET: is too short" in complaint(reservoir("urls", RESERVOIR_SECRET="short"), code=2)


def test_an_endpoint_that_can_do_nothing(tmp_path: Path, database_url: str) -> None:
    """Lockme's webhooks have no content: without a secret and without a kept token, `up` says what to set, and ends."""
    (tmp_path / "reservoir.toml").write_text(
        '[endpoints.room]\nprovider = "lockme"\ntimezone = "Europe/Warsaw"\n', encoding="utf-8"
    )
    command = [Path(sys.executable).with_name("reservoir"), "up", "--port", "0"]
    environment = {**bare_environment(), "DATABASE_URL": database_url}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90)
    line = complaint(Done(done.returncode, done.stdout, done.stderr), code=2)
    assert "endpoints.room" in line
    assert "RESERVOIR_ROOM_CLIENT_ID and RESERVOIR_ROOM_CLIENT_SECRET" in line


@pytest.mark.parametrize(
    ("url", "says", "code"),
    [
        ("mysql:what", "DATABASE_URL: is no URL", 2),
        ("postgresql://nobody@127.0.0.1:1/none", "PostgreSQL cannot be used", 1),
    ],
)
def test_a_database_that_is_none(reservoir: Command, url: str, says: str, code: int) -> None:
    """One line, whatever is wrong with it."""
    assert says in complaint(reservoir("bookings", "list", DATABASE_URL=url), code)


def test_mistyped_names_are_one_line(reservoir: Command, tmp_path: Path, database_url: str) -> None:
    """An endpoint, a delivery's id; the first with what was probably meant."""
    (tmp_path / "reservoir.toml").write_text(GOOD, encoding="utf-8")
    there = {"DATABASE_URL": database_url}
    mistyped = reservoir("lockme", "token", "dsk", **there)
    assert "there is no endpoint 'dsk' (did you mean desk?)" in complaint(mistyped, code=1)
    assert "takes no login" in complaint(reservoir("lockme", "login", "desk", "--port", "0", **there), code=1)
    assert "'x' is no delivery's id" in complaint(reservoir("deliveries", "show", "x", **there), code=1)


def test_urls_before_anything_runs(reservoir: Command, tmp_path: Path) -> None:
    """The secret is made once, kept where only its owner reads it, and gives the same URLs from then on."""
    (tmp_path / "venues.toml").write_text(GOOD, encoding="utf-8")
    words = ("--config", "venues.toml", "--state-dir", "state")
    first = json.loads(reservoir("urls", "--json", *words).stdout)
    secret = tmp_path / "state" / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    endpoints = load(tmp_path / "venues.toml")
    assert first == [
        {
            "endpoint": endpoint.name,
            "provider": endpoint.provider,
            "url": "http://127.0.0.1:8000" + hook_path(secret.read_text(), endpoint),
        }
        for endpoint in endpoints
    ]
    in_front = json.loads(reservoir(*words, "urls", "--json", "--base-url", "https://hooks.example.org/").stdout)
    assert [row["url"] for row in in_front] == [
        row["url"].replace("http://127.0.0.1:8000", "https://hooks.example.org") for row in first
    ]


def test_a_command_brings_its_own_database(reservoir: Command, tmp_path: Path) -> None:
    """Where nothing runs, an embedded one is started for its duration: empty tables, and no traceback."""
    (tmp_path / "reservoir.toml").write_text(GOOD, encoding="utf-8")
    listed = reservoir("bookings", "list", "--json")
    assert (listed.returncode, listed.stdout) == (0, "[]\n"), listed.stderr
    assert json.loads(reservoir("deliveries", "list", "--json", "--state", "parked").stdout) == []
    mistyped = reservoir("bookings", "list", "--endpoint", "dsk")
    assert "did you mean desk?" in complaint(mistyped, code=1)
    unknown = reservoir("deliveries", "show", "01a1fbb7-c0e3-79dd-ba46-15ec90f85ed7")
    assert "there is no delivery 01a1fbb7" in complaint(unknown, code=1)
    assert "bookings=0" in reservoir("bookings", "rebuild", "--from-raw").stdout
