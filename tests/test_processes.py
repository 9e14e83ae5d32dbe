"""Processes that are kept running and replaced: again at once where they worked, later and later where they do not."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from console.cli import main
from console.context import CommandError
from console.processes import HASTY, NotReplaced, Output, Process, pause
from tests.serving import eventually

SERVES = (
    "sh -c 'test -S /proc/self/fd/$UVICORN_FD -o ! -d /proc && sleep 0.3 && echo Uvicorn running on here && sleep 60'"
)
"""Where it was given the socket, and not at once, so that there is a time in which both are there."""

Make = Callable[..., Process]


@pytest.fixture
def make() -> Iterator[Make]:
    """Starts a line of a Procfile; ends it after the test."""
    made: list[Process] = []

    def start(command: str, held: socket.socket | None = None) -> Process:
        process = Process(
            name="web", kind="web", command=command, environment=os.environ, output=Output(["web"]), held=held
        )
        process.start()
        made.append(process)
        return process

    yield start
    for process in made:
        process.end(deadline=0.0)


def taken(steps: Iterator[None]) -> None:
    """Goes through a replacement as the supervisor does."""
    for _ in steps:
        time.sleep(0.01)


def test_the_pauses_grow_only_where_it_ends_right_after_its_start() -> None:
    """At once after it has worked; never more than five seconds, so that no deadline is missed for half a minute."""
    assert [pause(ends) for ends in range(7)] == [0.0, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_what_is_killed_again_and_again_starts_at_once_each_time(make: Make) -> None:
    """Three kills in a minute are no reason to stay away: it worked in between."""
    process = make("sleep 60")
    for _ in range(3):
        process.started -= HASTY + 1
        process.popen.kill()
        process.popen.wait()
        process.mend(for_good=False)
        assert process.alive


def test_what_cannot_start_is_tried_later_and_later(make: Make) -> None:
    """And is given up only before anything has worked."""
    process = make("false")
    waits = []
    for _ in range(3):
        process.popen.wait()
        process.mend(for_good=False)
        assert process.again_at is not None
        waits.append(round(process.again_at - time.monotonic(), 1))
        process.again_at = 0.0
        process.mend(for_good=False)
    assert waits == [0.5, 1.0, 2.0]
    process.popen.wait()
    with pytest.raises(CommandError, match="web does not start"):
        process.mend(for_good=True)


def test_a_socket_that_we_hold_goes_from_hand_to_hand(make: Make) -> None:
    """The old one serves until the new one does; supervision leaves both alone meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        process = make(SERVES, held)
        assert eventually(process.serving.is_set)
        old = process.popen
        steps = process.replace(lambda: False)
        next(steps)
        assert process.popen is not old
        assert old.poll() is None
        taken(steps)
        assert old.poll() is not None
        assert process.alive


def test_a_new_one_that_does_not_start_leaves_the_old_one_in_its_place(make: Make) -> None:
    """A restart with a mistake in it takes nothing down."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        process = make(SERVES, held)
        old = process.popen
        process.command = "false"
        with pytest.raises(NotReplaced, match="the new web ended with 1"):
            taken(process.replace(lambda: True))
        assert process.popen is old
        assert process.alive


def test_without_a_held_socket_the_old_one_ends_first(make: Make) -> None:
    """Two could not have the same port; nobody mends what is being replaced."""
    process = make("sh -c 'trap \"sleep 0.3; exit\" TERM; echo ready; sleep 60 & wait'")  # it takes its time to end
    time.sleep(0.3)
    old = process.popen
    steps = process.replace(lambda: process.popen is not old)
    next(steps)
    old.wait()
    process.mend(for_good=True)
    assert process.popen is old
    taken(steps)
    assert process.popen is not old
    assert process.alive


def test_a_new_one_that_is_killed_is_started_once_more(make: Make) -> None:
    """A kill in the middle of a restart is no mistake in what is restarted; one that ends each time is."""
    process = make("sleep 60")
    old = process.popen
    killed = []

    def works() -> bool:
        if process.popen is not old and process.popen not in killed and len(killed) < 2:
            killed.append(process.popen)
            process.popen.kill()
            process.popen.wait()
        return len(killed) == 2 and process.alive

    taken(process.replace(works))
    assert process.popen not in (old, *killed)
    process.command = "false"
    with pytest.raises(NotReplaced, match="the new web ended with 1"):
        taken(process.replace(lambda: False))


def test_nothing_is_left_in_the_middle_of_a_replacement(make: Make) -> None:
    """Whoever stops then ends both."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        process = make(SERVES, held)
        old = process.popen
        process.command = "sleep 60"
        steps = process.replace(lambda: True)
        next(steps)
        process.ask_to_end()
        process.end(time.monotonic() + 5)
        assert old.poll() is not None
        assert not process.alive


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("web", "takes a whole number, such as web=2"),
        ("web=two", "takes a whole number"),
        ("web=-1", "takes a whole number"),
        ("wbe=2", "the Procfile has no 'wbe'"),
        ("beat=2", "beat runs once; only web and worker can run several times"),
    ],
)
def test_a_scale_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, says: str
) -> None:
    """One line, before anything is started or made."""
    (tmp_path / "reservoir.toml").write_text('[endpoints.a]\nprovider = "reservekit"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reservoir", "up", "--scale", word])
    with pytest.raises(SystemExit) as ended:
        main()
    out, errors = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert errors.startswith(f"reservoir: --scale {word}: ")
    assert says in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / ".reservoir").exists()
