"""`reservoir send`: what the samples say, and what a running installation makes of them."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import psycopg
import pytest
from serving import free_port, listening
from sqlalchemy import Engine
from test_up import LEAN, Up, running, scaled
from world import NOON, VENUES, Script, World, answer, request

from console import sending
from console.samples import MESSAGE, SAMPLES, Sample
from console.sending import Sent, Wish
from schemas.delivery import RawDelivery, State, new_id
from tests.commands import Command, bare_environment, run
from workers.pipeline import understand
from workers.provider import Answer, Event, Failed, Ignored, Incoming
from workers.registry import discover

PROJECT = Path(__file__).parent.parent
CONFIG = "\n".join(
    f'[endpoints.{name}]\nprovider = "{provider}"\ntimezone = "Europe/Vienna"'
    for name, provider in (
        ("salon", "reservekit"),
        ("second-salon", "reservekit"),
        ("arcade", "synthesisvr"),
        ("studio", "timekit"),
        ("harbour", "checkfront"),
    )
)
MEANS = {
    ("reservekit", "create"): "pending",
    ("reservekit", "confirm"): "confirmed",
    ("reservekit", "cancel"): "cancelled",
    ("reservekit", "delete"): "cancelled",
    ("reservekit", "empty"): "no-bookings",
    ("synthesisvr", "create"): "confirmed",
    ("synthesisvr", "delete"): "cancelled",
    ("synthesisvr", "move"): "cancelled confirmed",
    ("synthesisvr", "empty"): "empty",
    ("synthesisvr", "unknown-action"): "unsupported-action",
    ("timekit", "create"): "pending",
    ("timekit", "confirm"): "confirmed",
    ("timekit", "decline"): "cancelled",
    ("timekit", "cancel"): "cancelled",
    ("timekit", "open-slot"): "group-owner",
    ("timekit", "forged"): "confirmed",
    ("checkfront", "create"): "pending",
    ("checkfront", "paid"): "confirmed",
    ("checkfront", "paid-xml"): "confirmed",
    ("checkfront", "payment"): "SMPL-000001",
    ("checkfront", "void"): "cancelled",
    ("checkfront", "item"): "catalogue-notice",
}
"""The statuses that a sample tells, in order; or why it is ignored or cannot be read; or the code that it pays for."""
READ = [sample for sample in SAMPLES if sample.provider != "lockme"]


# --- the samples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", READ, ids=lambda sample: f"{sample.provider}-{sample.situation}")
def test_a_sample_says_what_it_is_for(sample: Sample) -> None:
    told = []
    for element in understand(discover()[sample.provider], _incoming(sample)):
        match element:
            case Event(external_id=None, reference=code):
                told.append(code)
            case Event(said=said):
                told.append(str(said["status"]))
            case Ignored(reason=reason):
                told.append(reason)
            case Failed(error=error):
                told.append(error.reason)
    assert " ".join(map(str, told)) == MEANS[sample.provider, sample.situation]


def _incoming(sample: Sample) -> Incoming:
    raw = RawDelivery(
        id=new_id(),
        endpoint=VENUES[sample.provider].name,
        method=sample.method,
        received_at=NOON,
        headers=tuple(sample.headers.items()),
        body=sample.content(NOON),
    )
    recent = {"recent": Answer(status=200, body=[], at=NOON, recalled=True)}
    return Incoming(delivery=raw, endpoint=VENUES[sample.provider], answers=recent)


def test_there_is_a_sample_of_every_provider_and_none_twice() -> None:
    assert {sample.provider for sample in SAMPLES} == set(discover())
    named = [(sample.provider, sample.situation) for sample in SAMPLES]
    assert len(set(named)) == len(named)


def test_all_situations_of_a_provider_are_about_one_booking() -> None:
    """So that `create` and then `cancel` shows a row come and go, and a table gets one row of samples."""
    names: dict[str, set[str]] = {}
    for sample in READ:
        for element in understand(discover()[sample.provider], _incoming(sample)):
            if isinstance(element, Event) and element.external_id is not None:
                names.setdefault(sample.provider, set()).add(element.external_id)
    assert {provider: len(found) for provider, found in names.items()} == dict.fromkeys(names, 1)
    assert len(names) == 4


def test_lockme_samples_are_bare() -> None:
    """As Lockme's: no body; with a message id, but for the look that stores nothing."""
    bare = [sample for sample in SAMPLES if sample.provider == "lockme"]
    assert {sample.body for sample in bare} == {""}
    assert [(sample.method, "x-messageid" in sample.headers) for sample in bare] == [
        ("POST", True),
        ("GET", True),
        ("GET", False),
    ]


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_lockme_s_samples_come_as_far_as_lockme(engine: Engine, method: str) -> None:
    """Which does not know the message, and says so."""
    (sample,) = [one for one in SAMPLES if one.provider == "lockme" and one.method == method and len(one.headers) == 3]
    raw = replace(request("escape", headers=sample.headers.items()), method=sample.method)
    world = World(engine, [VENUES["lockme"]], script=Script({f"/message/{MESSAGE}": answer({}, 404)}))
    world.deliver(raw)
    assert world.verdict(raw.id) == (State.PARKED, "message-gone")


# --- a running installation --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`reservoir up` with an endpoint of each provider that needs no login; asked to end, it ends well."""
    with running(tmp_path_factory.mktemp("send"), *scaled(*LEAN), config=CONFIG) as installation:
        yield installation
        installation.popen.terminate()
        assert installation.popen.wait(60) == 0


def send(up: Up, provider: str, situation: str, **how: str) -> Sent:
    state_dir = up.folder / ".reservoir"
    wish = Wish(
        config_file=up.folder / "reservoir.toml", state_dir=state_dir, provider=provider, situation=situation, **how
    )
    with mock.patch.dict(os.environ, bare_environment(), clear=True):
        return sending.send(wish)


BECOMES = [
    ("reservekit", "create", "applied", None, "pending"),
    ("reservekit", "cancel", "applied", None, "cancelled"),
    ("synthesisvr", "create", "applied", None, "confirmed"),
    ("synthesisvr", "empty", "ignored", "empty", None),
    ("synthesisvr", "unknown-action", "parked", "unsupported-action", None),
    ("timekit", "confirm", "applied", None, "confirmed"),
    ("checkfront", "payment", "retrying", "awaiting-booking", None),
    ("checkfront", "paid-xml", "applied", None, "confirmed"),
]


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("provider", "situation", "state", "reason", "status"), BECOMES)
def test_a_sample_becomes_what_it_should(
    up: Up, provider: str, situation: str, state: str, reason: str | None, status: str | None
) -> None:
    sent = send(up, provider, situation)
    assert (sent.status, sent.unseen) == (200, None)
    assert sent.became is not None
    assert (sent.became.state, sent.became.reason) == (state, reason)
    assert [each for _, each in sent.became.bookings] == ([status] if status else [])
    assert re.search(r"/hooks/[a-z-]+/…$", sent.url)
    assert 0 < sent.milliseconds < 10_000


@pytest.mark.services
@pytest.mark.timeout(240)
def test_the_command_prints_status_time_and_fate(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    """To the provider's first endpoint, or to the one that is named."""
    done = up.command("send", "reservekit", "create", "--endpoint", "second-salon")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"/hooks/second-salon/… answered 200 in \d+ ms\n", done.stdout)
    assert re.search(r"delivery [0-9a-f-]{36}: applied\nbooking 900000001: pending\n", done.stdout)
    document = json.loads(up.typed(capsys, "send", "reservekit", "confirm", "--json").stdout)
    assert (document["status"], document["delivery"]["state"]) == (200, "applied")


@pytest.mark.services
@pytest.mark.timeout(240)
def test_a_url_that_is_wrong_is_told(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    """By `--to`, as it would stand in a dashboard; its secret is not shown."""
    wrong = f"{up.url}/hooks/salon/{'0' * 40}"
    done = up.typed(capsys, "send", "reservekit", "create", "--to", wrong)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{up.url}/hooks/salon/… answered 404")
    assert "0" * 40 not in done.stdout + done.stderr
    right = up.url + up.typed(capsys, "urls", "--json").stdout.split(up.url)[1].split('"')[0]
    assert send(up, "reservekit", "delete", to=right).became is not None


@pytest.mark.services
@pytest.mark.timeout(240)
def test_samples_can_be_taken_away_again(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    """By the statement that the documentation shows."""
    for provider in ("reservekit", "synthesisvr", "timekit", "checkfront"):
        send(up, provider, "create")
    page = (PROJECT / "docs" / "operating.md").read_text(encoding="utf-8")
    (statement,) = re.findall(r"`(DELETE FROM deliveries [^`]+)`", page)
    with psycopg.connect(up.announced()["database_url"]) as connection:
        connection.execute(statement)
    assert up.typed(capsys, "bookings", "rebuild").returncode == 0
    assert json.loads(up.typed(capsys, "bookings", "list", "--json").stdout) == []


# --- what is sent ------------------------------------------------------------------------------------------------


@pytest.fixture
def reservoir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in a directory of its own, where nothing runs."""
    (tmp_path / "reservoir.toml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return partial(run, capsys, "send")


def test_the_list_shows_every_sample(reservoir: Command) -> None:
    shown = json.loads(reservoir("--list", "--json").stdout)
    assert [(row["provider"], row["situation"]) for row in shown] == [
        (sample.provider, sample.situation) for sample in SAMPLES
    ]
    table = reservoir("--list").stdout
    assert all(sample.meaning in table for sample in SAMPLES)


def test_what_goes_out_is_the_sample_signed_with_the_endpoint_s_secret(reservoir: Command) -> None:
    """Of two secrets the first, which is the newest; a forged one is not signed."""
    came: list[bytes] = []

    def take(connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request or len(request.split(b"\r\n\r\n", 1)[1]) < _length(request):
            request += connection.recv(65536)
        came.append(request)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    with listening(take) as port:
        url = f"http://127.0.0.1:{port}/hooks/studio/token"
        secrets = {"RESERVOIR_STUDIO_WEBHOOK_SECRET": "new old"}
        assert reservoir("timekit", "confirm", "--to", url, **secrets).returncode == 0
        done = reservoir("timekit", "forged", "--to", url, **secrets)
    assert "the database is not in sight" in done.stdout
    signed, forged = came
    assert signed.startswith(b"POST /hooks/studio/token HTTP/1.1\r\n")
    body = signed.split(b"\r\n\r\n", 1)[1]
    assert json.loads(body)["state"] == "confirmed"
    mark = hmac.new(b"new", body, hashlib.sha256).hexdigest()
    assert f"x-timekit-signature: {mark}".encode() in signed.lower()
    assert b"x-timekit-signature" not in forged.lower()
    assert b"x-reservoir-sample: " in forged.lower()


def _length(request: bytes) -> int:
    found = re.search(rb"content-length: (\d+)", request.lower())
    return int(found[1]) if found else 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say what: a provider and a situation"),
        (("timekti", "create"), "did you mean timekit?"),
        (("timekit", "creat"), "did you mean create?"),
        (("lockme", "message"), "there is no endpoint of lockme"),
        (("timekit", "create"), "no `reservoir up` is running here"),
        (("timekit", "create", "--endpoint", "salon"), "salon is an endpoint of reservekit"),
        (("timekit", "create", "--to", "studio"), "--to takes a URL"),
    ],
)
def test_mistakes_are_one_line(reservoir: Command, words: tuple[str, ...], says: str) -> None:
    done = reservoir(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert says in done.stderr


def test_nobody_there_is_one_line(reservoir: Command) -> None:
    done = reservoir("timekit", "create", "--to", f"http://127.0.0.1:{free_port()}/hooks/studio/token")
    assert (done.returncode, done.stdout) == (1, "")
    assert "/hooks/studio/…: no answer (ConnectError); is it running?" in done.stderr
