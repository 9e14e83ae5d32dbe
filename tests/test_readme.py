"""Every command of README.md works: those of `reservoir` for real, against one installation beside the simulators.

A command that is added to the README and that nothing here knows makes this fail.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from console.trial import Trial, TrialFailed
from schemas.endpoints import Endpoint
from simulators.clock import Clock
from simulators.ledger import Ledger
from simulators.lockme import Lockme
from simulators.server import discover
from simulators.venue import Weather

pytestmark = [pytest.mark.timeout(180)]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PATIENCE = 60.0
ENVIRONMENT = {
    "RESERVOIR_SPOOL_DIR": "off",  # a test's own disk may be one that the doctor warns of
    "RESERVOIR_HEARTBEAT": "2",  # a worker is heard of sooner
}


def commands() -> list[str]:
    """Of the fenced blocks, and of the table of commands."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", README)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    table = re.findall(r"(?m)^\| `(reservoir [^`]+)` \|", README)
    return [*dict.fromkeys(line for line in (*lines, *table) if line)]


# --- make --------------------------------------------------------------------------------------------------------


def makes(target: str, what: str) -> None:
    """`make TARGET` is one of the Makefile's, and does this once the environment is there."""
    planned = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.ready", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert what in planned.stdout


def activates() -> None:
    """Afterwards `reservoir` is found, and is this environment's."""
    there = Path(sys.prefix)
    script = f'. "{there}/bin/activate" && command -v reservoir'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == there / "bin" / "reservoir"


# --- reservoir ---------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What one installation said to the commands of the README."""

    url: str = ""
    log: str = ""
    said: dict[str, str] = field(default_factory=dict)
    """A command as it was run → what it printed; all of them ended with exit code 0."""

    def rows(self, command: str) -> list[dict[str, Any]]:
        return list(json.loads(self.said[f"{command} --json"]))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    clock, ledger = Clock(datetime.now(UTC).replace(microsecond=0), 2000.0), Ledger()

    def venue(name: str, kind: type[Any]) -> Any:
        switches = {"oauth": True} if kind is Lockme else {}
        rng = Random(f"readme {name}")
        return kind(
            endpoint=f"{name}-venue", hook_url="", ledger=ledger, clock=clock, rng=rng, weather=Weather(), **switches
        )

    venues = [venue(name, kind) for name, kind in discover().items()]
    seen = Seen()

    async def live() -> None:
        folder = tmp_path_factory.mktemp("readme")
        async with Trial(venues, ledger, folder, scale={"flower": 0}, environment=ENVIRONMENT) as trial:
            seen.url = trial.url
            days = asyncio.gather(*(venue.busy_day(1) for venue in venues))
            await _asked(trial, seen)
            await days
            seen.log = trial.log.read_text(errors="replace")

    asyncio.run(live())
    return seen


async def _asked(trial: Trial, seen: Seen) -> None:
    """In the order of a first day; what does not need another one's answer is asked at once."""

    async def ask(command: str) -> str:
        seen.said[command] = (await trial.run(*command.split()[1:])).decode()
        return seen.said[command]

    seen.said["reservoir lockme login lockme-venue"] = await _login(trial)
    await asyncio.gather(
        ask("reservoir urls --json"),
        ask("reservoir send --list"),
        ask("reservoir send checkfront paid"),
        ask("reservoir send timekit forged"),
    )
    await asyncio.gather(
        ask("reservoir bookings list --json"),
        ask("reservoir deliveries list --json"),
        ask("reservoir deliveries list --state parked --json"),
        ask("reservoir alarms list --json"),
        ask("reservoir replay --since 7d --dry-run"),
    )
    [parked] = seen.rows("reservoir deliveries list --state parked")
    await asyncio.gather(ask(f"reservoir deliveries show {parked['id']}"), _well(ask))
    await ask(f"reservoir deliveries retry {parked['id']}")
    await asyncio.gather(
        ask("reservoir deliveries retry --reason bad-signature"),
        ask("reservoir deliveries retry --state parked"),
    )
    await ask("reservoir replay --since 7d --apply")
    await asyncio.gather(ask("reservoir bookings rebuild"), ask("reservoir bookings rebuild --from-raw"))


async def _well(ask: Callable[[str], Any]) -> None:
    """A worker is heard of some seconds after its start."""
    async with asyncio.timeout(PATIENCE):
        while "reservoir doctor" not in (await _tried(ask)):
            await asyncio.sleep(1)


async def _tried(ask: Callable[[str], Any]) -> set[str]:
    with suppress(TrialFailed):
        await ask("reservoir doctor")
        return {"reservoir doctor"}
    return set()


async def _login(trial: Trial) -> str:
    """A person opens the address that the command prints, says yes, and the browser comes back to the command."""
    [venue] = [venue for venue in trial.venues if isinstance(venue, Lockme)]
    endpoint = Endpoint(name=venue.endpoint, provider="lockme")
    login = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("reservoir"), "lockme", "login", venue.endpoint, "--port", "0"),
        *("--config", trial.folder / "reservoir.toml", "--state-dir", trial.folder / "state"),
        env={**os.environ, **{endpoint.variable(what): value for what, value in venue.secrets().items()}},
        stdout=asyncio.subprocess.PIPE,
    )
    assert login.stdout is not None
    async with asyncio.timeout(PATIENCE), httpx.AsyncClient(trust_env=False, follow_redirects=True) as browser:
        while not (address := (await login.stdout.readline()).decode().strip()).startswith("http"):
            assert not login.stdout.at_eof()
        assert "Done" in (await browser.get(address)).text
        said = await login.stdout.read()
        assert await login.wait() == 0
    return said.decode()


# --- each of them ------------------------------------------------------------------------------------------------


def _up(seen: Seen) -> None:
    assert seen.url.startswith("http://127.0.0.1:")
    assert "Traceback" not in seen.log


def _urls(seen: Seen) -> None:
    assert {row["provider"] for row in seen.rows("reservoir urls")} == set(discover())
    assert all(row["url"].startswith(f"{seen.url}/hooks/") for row in seen.rows("reservoir urls"))


def _send(seen: Seen) -> None:
    assert "answered 200" in seen.said["reservoir send checkfront paid"]
    assert "booking 900000001: confirmed" in seen.said["reservoir send checkfront paid"]
    assert "paid-xml" in seen.said["reservoir send --list"]


def _bookings(seen: Seen) -> None:
    rows = {(row["endpoint"], row["external_id"]): row for row in seen.rows("reservoir bookings list")}
    assert rows["checkfront-venue", "900000001"]["customer_name"] == "Sample Guest"


def _deliveries(seen: Seen) -> None:
    assert len(seen.rows("reservoir deliveries list")) >= 2
    [parked] = seen.rows("reservoir deliveries list --state parked")
    assert parked["reason"] == "bad-signature"


def _show(seen: Seen) -> None:
    [parked] = seen.rows("reservoir deliveries list --state parked")
    shown = seen.said[f"reservoir deliveries show {parked['id']}"]
    assert "Sample Guest" in shown
    assert "x-timekit-signature is missing" in shown


def _retry(seen: Seen) -> None:
    """By its id; then it is due, and whether a worker holds it by now is a matter of milliseconds."""
    [parked] = seen.rows("reservoir deliveries list --state parked")
    assert seen.said[f"reservoir deliveries retry {parked['id']}"] == "retry: again=1 held=0\n"
    assert re.fullmatch(
        r"retry: again=[01] held=[01]\n", seen.said["reservoir deliveries retry --reason bad-signature"]
    )
    assert re.fullmatch(r"retry: again=[01] held=[01]\n", seen.said["reservoir deliveries retry --state parked"])


def _doctor(seen: Seen) -> None:
    lines = seen.said["reservoir doctor"].splitlines()
    assert {line[:4].strip() for line in lines} <= {"ok", "warn"}
    assert any(re.match(r"ok +beat: swept \d+ s ago", line) for line in lines), lines


def _alarms(seen: Seen) -> None:
    """Nobody watches here, so nothing was noted."""
    assert seen.rows("reservoir alarms list") == []


def _lockme(seen: Seen) -> None:
    assert "the token of lockme-venue is kept" in seen.said["reservoir lockme login lockme-venue"]


def _replay(seen: Seen) -> None:
    assert "a dry run: nothing was written" in seen.said["reservoir replay --since 7d --dry-run"]
    assert re.search(r"replay: deliveries=\d+", seen.said["reservoir replay --since 7d --apply"])


def _rebuild(seen: Seen) -> None:
    for command in ("reservoir bookings rebuild", "reservoir bookings rebuild --from-raw"):
        assert re.search(r"rebuild: deliveries=\d+ bookings=[1-9]", seen.said[command])


PROOFS: Mapping[str, Callable[[Seen], None]] = {
    "reservoir up": _up,
    "reservoir urls": _urls,
    "reservoir send PROVIDER SITUATION": _send,
    "reservoir bookings list": _bookings,
    "reservoir deliveries list": _deliveries,
    "reservoir deliveries show ID": _show,
    "reservoir deliveries retry ID": _retry,
    "reservoir doctor": _doctor,
    "reservoir alarms list": _alarms,
    "reservoir lockme login ENDPOINT": _lockme,
    "reservoir replay --since 7d --dry-run": _replay,
    "reservoir bookings rebuild": _rebuild,
}
"""The installation's commands → what must be true of what they said."""
PLANS: Mapping[str, Callable[[], None]] = {
    "make demo": lambda: makes("demo", "-m console.demo"),
    "make test": lambda: makes("test", "-m pytest"),
    "make chaos": lambda: makes("chaos", "-m chaos"),
    "make setup": lambda: makes("setup", ""),
    ". .venv/bin/activate": activates,
}
"""Those that run for long, or make what a test stands on; `test_chaos.py` and the test below run the first ones."""


def test_every_command_is_known() -> None:
    assert set(commands()) == {*PROOFS, *PLANS}


@pytest.mark.long
@pytest.mark.services
@pytest.mark.parametrize("command", PROOFS)
def test_a_command_of_the_installation(seen: Seen, command: str) -> None:
    PROOFS[command](seen)


@pytest.mark.parametrize("command", PLANS)
def test_a_command_of_the_project(command: str) -> None:
    PLANS[command]()


@pytest.mark.long
@pytest.mark.services
def test_the_demo() -> None:
    """As in the README, and its last line is of that form, with nothing wrong and nothing lost."""
    shown = re.search(r"(?m)^demo: .*$", README)
    assert shown is not None
    command = ["make", "--no-print-directory", "--old-file=.venv/.ready", "demo"]  # we may run below a `make` ourselves
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout
    last = done.stdout.splitlines()[-1]
    assert re.sub(r"\d+", "N", last) == re.sub(r"\d+", "N", shown[0])
    assert last.endswith("wrong=0 lost=0")


def test_the_readme_is_short() -> None:
    """Whoever comes for the first time reads all of it."""
    assert len(README.splitlines()) <= 135
