"""Who may look at Flower, and what it can tell: reasons and ids, nothing of a guest.

What it shows of a whole day, by its HTTP API with and without the password, is in test_acceptance.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisAway

from console.flower import AUTH, check
from schemas.delivery import new_id
from schemas.endpoints import ConfigError
from tests.commands import Done, run
from workers import tasks
from workers.errors import DeliveryError

RESERVOIR = Path(sys.executable).with_name("reservoir")
GUEST = "guest@example.org"
GOOD = {AUTH: "operator:twelve-chars"}


@pytest.mark.parametrize(
    ("host", "environment"),
    [
        ("127.0.0.1", {}),
        ("127.0.0.2", {AUTH: ""}),
        ("::1", {}),
        ("localhost", {}),
        ("0.0.0.0", GOOD),
        ("", GOOD),
        ("10.0.0.1", {AUTH: "operator:twelve-chars,another:twelve:chars"}),
    ],
)
def test_with_a_password_it_listens_anywhere_and_without_one_on_this_machine(
    host: str, environment: Mapping[str, str]
) -> None:
    check(host, environment)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "*", "nobody.invalid"])
def test_without_a_password_nobody_else_is_let_in(host: str) -> None:
    """An empty address is every address, for whoever binds a socket."""
    with pytest.raises(ConfigError, match=f"^FLOWER_HOST: .*set {AUTH} to name:password"):
        check(host, {})


@pytest.mark.parametrize("pair", ["operator", "operator:", ":twelve-chars", "operator:short", "a:twelve-chars,b:short"])
def test_a_password_that_is_none_is_refused_and_not_quoted(pair: str) -> None:
    with pytest.raises(ConfigError, match=f"^{AUTH}: takes name:password") as refused:
        check("127.0.0.1", {AUTH: pair})
    assert "short" not in str(refused.value)


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A folder with a configuration."""
    (tmp_path / "reservoir.toml").write_text('[endpoints.desk]\nprovider = "checkfront"\ntimezone = "Europe/Berlin"\n')
    return tmp_path


def is_refused_in_one_line(done: Done) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("reservoir: FLOWER_HOST: Flower without a password listens on 127.0.0.1 only")
    assert done.stderr.count("\n") == 1


def test_it_ends_at_once_with_one_line(
    installation: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(installation)
    monkeypatch.delenv(AUTH, raising=False)
    is_refused_in_one_line(run(capsys, "flower", "--address", "0.0.0.0", FLOWER_HOST="0.0.0.0"))


def test_up_says_so_before_it_starts_anything(installation: Path) -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWER_", "RESERVOIR_"))}
    ended = subprocess.run(
        [RESERVOIR, "up", "--port", "0"],
        cwd=installation,
        env={**bare, "FLOWER_HOST": "0.0.0.0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    is_refused_in_one_line(Done(ended.returncode, ended.stdout, ended.stderr))


@pytest.mark.parametrize(
    ("stumbles", "told"),
    [
        (ValueError(GUEST), "ValueError at test_flower.py:"),
        (RedisAway(GUEST), "redis: ConnectionError"),
    ],
)
def test_a_task_that_fails_quotes_nothing(monkeypatch: pytest.MonkeyPatch, stumbles: Exception, told: str) -> None:
    """What escapes a task is shown by Flower: its text, its result, its traceback."""

    def stumble() -> None:
        raise stumbles from KeyError(GUEST)

    monkeypatch.setattr(tasks, "workshop", stumble)
    for task, arguments in ((tasks.process, [str(new_id())]), (tasks.sweep_up, [])):
        with pytest.raises(DeliveryError) as escaped:
            task(*arguments)
        assert str(escaped.value).startswith(told)
        assert GUEST not in "".join(traceback.format_exception(escaped.value)) + repr(escaped.value)
