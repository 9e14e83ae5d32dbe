"""`reservoir up` as a user runs it: one line when a webhook would be taken, nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from tests.commands import Done, run
from tests.serving import PLAIN, free_port, listening

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

    def typed(self, capsys: pytest.CaptureFixture[str], *words: str) -> Done:
        """The same without a process of its own, which takes a second of a core to start."""
        places = {"RESERVOIR_CONFIG": "reservoir.toml", "RESERVOIR_STATE_DIR": ".reservoir"}
        return run(capsys, *words, **{name: str(self.folder / place) for name, place in places.items()})

    def everything(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)

    def process(self, words: str) -> psutil.Process:
        """The one whose command line holds these words, and that is our own child."""
        children = psutil.Process(self.popen.pid).children()
        return next(child for child in children if words in command_line(child))

    def announced(self) -> dict[str, Any]:
        """What stands in services.json."""
        facts: dict[str, Any] = json.loads((self.folder / ".reservoir" / "services.json").read_text())
        return facts

    def pids(self) -> dict[str, int]:
        return {process["name"]: process["pid"] for process in self.announced()["processes"]}

    def states(self) -> list[str]:
        """Of all deliveries. To wait so costs nothing; the command that tells of them takes a second of a core."""
        with psycopg.connect(self.announced()["database_url"]) as connection:
            return [str(state) for (state,) in connection.execute("SELECT state FROM deliveries")]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def hook(self) -> str:
        """The path of the endpoint's URL."""
        [found] = json.loads(self.command("urls", "--json").stdout)
        return "/hooks/" + str(found["url"]).split("/hooks/")[1]


PAGES = ("flower=0", "metrics=0", "console=0")
LEAN = (*PAGES, "alarms=0")
"""What is left out where it is not the matter: each of them is a process that takes a second of a core to start."""


def scaled(*scale: str) -> list[str]:
    """As words of the command line."""
    return [word for one in scale for word in ("--scale", one)]


@contextmanager
def running(folder: Path, *words: str, config: str = CONFIG) -> Iterator[Up]:
    (folder / "reservoir.toml").write_text(config, encoding="utf-8")
    with (folder / "log").open("w") as log:
        popen = subprocess.Popen(
            [RESERVOIR, "up", "--port", "0", *words],
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


def command_line(process: psutil.Process) -> str:
    """One that has just ended has none."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def knows(process: psutil.Process) -> set[str]:
    """What of the secret things a process was given."""
    return {"DATABASE_URL", "REDIS_URL", "RESERVOIR_SECRET", "RESERVOIR_DESK_API_SECRET"} & set(process.environ())


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """With every process, for the tests that follow, in their order: one of them kills it."""
    with running(tmp_path_factory.mktemp("up")) as started:
        yield started


@pytest.fixture(scope="module")
def again(up: Up) -> Iterator[Up]:
    """The next start, with every process again, over the state directory of one that was killed."""
    up.popen.kill()
    up.popen.wait()
    with running(up.folder) as started:
        yield started


def test_a_webhook_is_taken_as_soon_as_it_says_ready(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    """From the printed URL to the delivery log; and nobody else may start over the same state directory."""
    found = json.loads(up.command("urls", "--json").stdout)
    assert [row["url"].rsplit("/hooks/")[0] for row in found] == [up.url]
    with httpx.Client(**PLAIN) as client:
        assert client.post(found[0]["url"], content=b"no booking").status_code == 200
    assert eventually(lambda: "parked" in up.states())
    [row] = json.loads(up.command("deliveries", "list", "--json", "--state", "parked").stdout)
    shown = json.loads(up.typed(capsys, "deliveries", "show", row["id"], "--json").stdout)
    assert (shown["body"], shown["method"], shown["endpoint"]) == ("no booking", "POST", "desk")
    assert "no booking" in up.command("deliveries", "show", row["id"]).stdout

    assert knows(up.process("uvicorn")) == {"REDIS_URL", "RESERVOIR_SECRET"}
    assert knows(up.process(" beat ")) == {"REDIS_URL"}
    assert knows(up.process(" flower ")) == {"REDIS_URL"}
    assert "RESERVOIR_DESK_API_SECRET" in knows(up.process(" worker "))

    second = up.command("up", "--port", "0")
    assert (second.returncode, second.stdout) == (1, "")
    assert "is in use by another `reservoir`" in second.stderr.splitlines()[-1]


def test_what_dies_comes_back(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    """A killed worker, a killed Redis: the receiver is never left without them."""
    [found] = json.loads(up.typed(capsys, "urls", "--json").stdout)
    parked = up.states().count("parked")
    for words in (" worker ", "redis-server"):
        up.process(words).kill()
    assert eventually(lambda: "worker ended with -9; it starts again now" in up.log())
    assert eventually(lambda: "Redis is back after" in up.log())
    with httpx.Client(**PLAIN) as client:
        assert eventually(lambda: client.post(found["url"], content=b"no booking either").status_code == 200)
    assert eventually(lambda: up.states().count("parked") > parked)
    [newest, *_] = json.loads(up.typed(capsys, "deliveries", "list", "--json").stdout)
    assert (newest["state"], newest["body_bytes"]) == ("parked", len(b"no booking either"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_up_takes_everything_with_it(up: Up) -> None:
    """kill -9 leaves no process that holds a port or a queue."""
    everything = up.everything()
    assert len(everything) > 6
    up.popen.kill()
    assert eventually(lambda: not any(process.is_running() for process in everything))


def test_the_start_after_a_kill_works_on_the_same_state_directory(
    again: Up, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again.typed(capsys, "bookings", "list", "--json").stdout == "[]\n"


def test_ctrl_c_ends_all_of_it(again: Up) -> None:
    """With exit code 0 and no more words."""
    everything = again.everything()
    again.popen.send_signal(signal.SIGINT)
    assert again.popen.wait(60) == 0
    assert again.popen.stdout is not None
    assert again.popen.stdout.read() == ""
    assert [process for process in everything if process.is_running()] == []
    assert not (again.folder / ".reservoir" / "services.json").exists()


# --- a rolling restart -----------------------------------------------------------------------------------------

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
PROJECT = Path(__file__).resolve().parent.parent


@dataclass
class Senders:
    """Two that send all the time, one on a connection of its own each time, one on a connection that is kept."""

    url: str
    answers: list[int | str]
    """Status codes, and the names of what went wrong."""

    def _send(self, kept: bool) -> None:
        with httpx.Client(**PLAIN, timeout=10.0) as client:
            while not self._enough.is_set():
                try:
                    headers = {} if kept else {"connection": "close"}
                    self.answers.append(client.post(self.url, content=b"no booking", headers=headers).status_code)
                except httpx.TransportError as error:
                    self.answers.append(repr(error))
                time.sleep(0.05)

    def __enter__(self) -> Senders:
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(kept,)) for kept in (False, True)]
        for thread in self._threads:
            thread.start()
        assert eventually(lambda: len(self.answers) > 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def balancer(folder: Path, receivers: list[str]) -> Iterator[str]:
    """deploy/haproxy.cfg in front of these receivers, without Docker's name service; its base URL."""
    assert HAPROXY is not None
    port = free_port()
    settings = (PROJECT / "deploy" / "haproxy.cfg").read_text(encoding="utf-8")
    settings = re.sub(r"(?m)^resolvers docker\n(?: .*\n)+", "", settings)
    servers = "\n".join(f"    server receiver-{n} {url.removeprefix('http://')}" for n, url in enumerate(receivers))
    settings = re.sub(r"(?m)^ *server-template .*$", servers, settings)
    settings = settings.replace("bind :8080", f"bind 127.0.0.1:{port}")
    file = folder / "haproxy.cfg"
    file.write_text(settings, encoding="utf-8")
    with (folder / "haproxy.log").open("w") as log:
        process = subprocess.Popen([HAPROXY, "-db", "-f", file], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not on the PATH; nothing was proved about load balancers")
@pytest.mark.long
def test_two_receivers_are_replaced_without_a_refusal(tmp_path: Path) -> None:
    """Behind the load balancer of `deploy/`, every request is answered 200 while every process is replaced.

    Two receivers and two workers are processes of their own with names of their own; what is scaled to nothing is not
    there, and the rest is ready without it.
    """
    with running(tmp_path, *scaled("web=2", "worker=2", *LEAN)) as up:
        facts, before = up.announced(), up.pids()
        assert facts["url"] == facts["urls"][0] == up.url
        assert len({*facts["urls"]}) == 2
        assert facts["pid"] == up.popen.pid
        assert list(before) == ["web.1", "web.2", "worker.1", "worker.2", "beat"]
        assert knows(psutil.Process(before["web.2"])) == {"REDIS_URL", "RESERVOIR_SECRET"}
        with balancer(tmp_path, facts["urls"]) as url:
            with httpx.Client(**PLAIN) as client:
                assert eventually(lambda: client.post(url + up.hook(), content=b"no booking").status_code == 200)
            with Senders(url + up.hook(), []) as senders:
                done = up.command("restart")
            assert done.returncode == 0, done.stderr
            assert done.stdout == "replaced: web.1 web.2 worker.1 worker.2 beat\n"
        assert len(senders.answers) >= 200
        assert {*senders.answers} == {200}, (tmp_path / "haproxy.log").read_text()
        assert {*before.values()} & {*up.pids().values()} == set()
        assert "ended with" not in up.log()
        order = re.findall(r'"text": "(\S+) is replaced"', up.log())
        assert order == ["web.1", "web.2", "worker.1", "worker.2", "beat"]


API = CONFIG.replace("127.0.0.1:9", "127.0.0.1:{port}")
BOOKING = json.dumps({"booking": {"@attributes": {"booking_id": "7"}, "status": "PAID"}}).encode()


@pytest.mark.long
def test_one_receiver_is_replaced_and_killed_without_a_refusal(tmp_path: Path) -> None:
    """On a laptop, without a load balancer; and the worker that is replaced ends its task first.

    The task asks a slow API when the worker is told to end. When the worker has gone, the delivery is settled by its
    first attempt: it was not left for somebody to find when the lease runs out.
    """
    asked, answered = threading.Event(), threading.Event()

    def slow(connection: socket.socket) -> None:
        connection.recv(65536)
        asked.set()
        answered.wait(60)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    with listening(slow) as port, running(tmp_path, *scaled(*PAGES), config=API.format(port=port)) as up:
        before, hook = up.pids(), up.hook()
        with httpx.Client(**PLAIN) as client:
            assert client.post(up.url + hook, content=BOOKING).status_code == 200
        assert asked.wait(30)
        with Senders(up.url + hook, []) as senders:
            restarting = threading.Thread(target=lambda: done.append(up.command("restart")))
            done: list[subprocess.CompletedProcess[str]] = []
            restarting.start()
            assert eventually(lambda: "worker is replaced" in up.log())
            assert eventually(lambda: "Warm shutdown" in up.log())
            assert psutil.pid_exists(before["worker"])
            answered.set()
            assert eventually(lambda: not psutil.pid_exists(before["worker"]))
            rows = [
                row for row in json.loads(up.command("deliveries", "list", "--json").stdout) if row["body_bytes"] > 20
            ]
            assert [row["state"] in ("applied", "retrying") for row in rows] == [True], "its task came to its end"
            restarting.join()
        assert done[0].returncode == 0, done[0].stderr
        assert {*senders.answers} == {200}
        assert {*before.values()} & {*up.pids().values()} == set()

        psutil.Process(up.pids()["web"]).kill()
        with httpx.Client(**PLAIN, timeout=10.0) as client:
            assert client.post(up.url + hook, content=b"no booking").status_code == 200
        assert "web ended with -9; it starts again now" in up.log()

        assert eventually(lambda: up.log().count('"event": "watching"') == 2), "alarms has read its configuration again"
        (tmp_path / "reservoir.toml").write_text("[endpoints.desk]\nprovider = 'checkfrnt'\n", encoding="utf-8")
        pids = up.pids()
        refused = up.command("restart")
        assert refused.returncode == 1
        assert "did you mean checkfront?" in refused.stderr
        assert up.pids() == pids


def test_there_is_nothing_to_restart(tmp_path: Path) -> None:
    """One line that says so."""
    (tmp_path / "reservoir.toml").write_text(CONFIG, encoding="utf-8")
    done = subprocess.run([RESERVOIR, "restart"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no `reservoir up` is running" in done.stderr
