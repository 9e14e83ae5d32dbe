"""`reservoir up` as a user runs it: one line when a webhook would be taken, nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]

CONFIG = """
[endpoints.desk]
provider = "checkfront"
timezone = "Europe/Berlin"
api_url = "http://127.0.0.1:9"
"""
RESERVOIR = Path(sys.executable).with_name("reservoir")


def environment() -> Mapping[str, str]:
    """Ours, without what would point to somebody else's servers; and a provider's secret."""
    bare = {name: value for name, value in os.environ.items() if not re.match(r"RESERVOIR_|DATABASE_|REDIS_", name)}
    return {**bare, "RESERVOIR_DESK_API_KEY": "key", "RESERVOIR_DESK_API_SECRET": "very-secret"}


@dataclass
class Up:
    """A running `reservoir up`."""

    folder: Path
    popen: subprocess.Popen[str]
    url: str

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RESERVOIR, *words], cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=90
        )

    def everything(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)

    def process(self, words: str) -> psutil.Process:
        """The one whose command line holds these words, and that is our own child."""
        children = psutil.Process(self.popen.pid).children()
        return next(child for child in children if words in " ".join(child.cmdline()))


@contextmanager
def running(folder: Path) -> Iterator[Up]:
    (folder / "reservoir.toml").write_text(CONFIG, encoding="utf-8")
    with (folder / "log").open("w") as log:
        popen = subprocess.Popen(
            [RESERVOIR, "up", "--port", "0"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert popen.stdout is not None
        line = popen.stdout.readline()
        assert line.startswith("ready: http://127.0.0.1:"), (folder / "log").read_text()
        yield Up(folder, popen, line.removeprefix("ready: ").strip())
    finally:
        popen.terminate()
        popen.wait(60)
        popen.stdout.close()


def eventually(true: Callable[[], bool], within: float = 30.0) -> bool:
    deadline = time.monotonic() + within
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return true()


def knows(process: psutil.Process) -> set[str]:
    """What of the secret things a process was given."""
    return {"DATABASE_URL", "REDIS_URL", "RESERVOIR_SECRET", "RESERVOIR_DESK_API_SECRET"} & set(process.environ())


def test_a_webhook_is_taken_as_soon_as_it_says_ready(tmp_path: Path) -> None:
    """From the printed URL to the delivery log; Ctrl-C then ends all of it, with exit code 0 and no more words."""
    with running(tmp_path) as up:
        found = json.loads(up.command("urls", "--json").stdout)
        assert [row["url"].rsplit("/hooks/")[0] for row in found] == [up.url]
        with httpx.Client(trust_env=False) as client:
            assert client.post(found[0]["url"], content=b"no booking").status_code == 200
        assert eventually(lambda: "parked" in up.command("deliveries", "list", "--json").stdout)
        [row] = json.loads(up.command("deliveries", "list", "--json", "--state", "parked").stdout)
        shown = json.loads(up.command("deliveries", "show", row["id"], "--json").stdout)
        assert (shown["body"], shown["method"], shown["endpoint"]) == ("no booking", "POST", "desk")
        assert "no booking" in up.command("deliveries", "show", row["id"]).stdout

        assert knows(up.process("uvicorn")) == {"REDIS_URL", "RESERVOIR_SECRET"}
        assert knows(up.process(" beat ")) == {"REDIS_URL"}
        assert knows(up.process(" flower ")) == {"REDIS_URL"}
        assert "RESERVOIR_DESK_API_SECRET" in knows(up.process(" worker "))

        again = up.command("up", "--port", "0")
        assert (again.returncode, again.stdout) == (1, "")
        assert "is in use by another `reservoir`" in again.stderr.splitlines()[-1]

        everything = up.everything()
        up.popen.send_signal(signal.SIGINT)
        assert up.popen.wait(60) == 0
        assert up.popen.stdout is not None
        assert up.popen.stdout.read() == ""
        assert [process for process in everything if process.is_running()] == []
        assert not (tmp_path / ".reservoir" / "services.json").exists()


def test_what_dies_comes_back(tmp_path: Path) -> None:
    """A killed worker, a killed Redis: the receiver is never left without them."""
    with running(tmp_path) as up:
        [found] = json.loads(up.command("urls", "--json").stdout)
        for words in (" worker ", "redis-server"):
            up.process(words).kill()
        assert eventually(lambda: "worker ended with -9; it starts again" in (tmp_path / "log").read_text())
        with httpx.Client(trust_env=False) as client:
            assert eventually(lambda: client.post(found["url"], content=b"no booking").status_code == 200)
        assert eventually(lambda: '"parked"' in up.command("deliveries", "list", "--json").stdout)
        up.popen.terminate()
        assert up.popen.wait(60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_up_takes_everything_with_it(tmp_path: Path) -> None:
    """kill -9 leaves no process that holds a port or a queue; the next start works on the same state directory."""
    with running(tmp_path) as up:
        everything = up.everything()
        assert len(everything) > 6
        up.popen.kill()
        assert eventually(lambda: not any(process.is_running() for process in everything))
    with running(tmp_path) as up:
        assert up.command("bookings", "list", "--json").stdout == "[]\n"
