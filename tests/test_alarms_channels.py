"""A notice over real channels: a web server that verifies the signature, a mail server, a program."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest
from serving import free_port, listening, serving, silent_server
from standardwebhooks import Webhook, WebhookVerificationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from console.alarms import channels
from console.alarms.channels import NotSent, send
from console.alarms.findings import Finding
from console.alarms.incidents import News, over, seen
from console.alarms.notice import Notice, about, for_trial
from console.alarms.settings import ToCommand, ToEmail, ToWebhook

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
FINDING = Finding(kind="silence", subject="vienna", title="vienna is silent", detail="für 6 h")


def notice(news: News = News.OPENED) -> Notice:
    incident, _ = seen(None, FINDING, NOON)
    if news is News.RECOVERED:
        incident, _ = over(incident, NOON)
    return about(incident, news, NOON, "test-host")


# --- webhook -----------------------------------------------------------------------------------------------------


@dataclass
class Desk:
    """A web server that takes only what is signed with its key."""

    key: str = KEY
    status: int = 204
    came: list[Any] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    async def take(self, request: Request) -> Response:
        try:
            self.came.append(Webhook(self.key).verify(await request.body(), dict(request.headers)))
        except WebhookVerificationError:
            return Response(status_code=401)
        self.ids.append(request.headers["webhook-id"])
        return Response(status_code=self.status)

    @contextmanager
    def open(self) -> Iterator[str]:
        with serving(Starlette(routes=[Route("/alarms", self.take, methods=["POST"])])) as base:
            yield f"{base}/alarms"


def test_a_webhook_is_signed_so_that_the_library_verifies_it() -> None:
    desk, told = Desk(), notice()
    with desk.open() as url:
        assert send(ToWebhook(url=url, secret=KEY), told) == "status 204"
    (content,) = desk.came
    assert content == told.content
    assert (content["type"], content["data"]["subject"]) == ("incident.opened", "vienna")
    assert content["data"]["runbook"] == "docs/alarms.md#silence"
    assert desk.ids == [str(told.id)]


def test_a_webhook_signed_with_another_key_is_turned_away() -> None:
    with Desk(key="whsec_" + "A" * 32).open() as url, pytest.raises(NotSent, match="status 401"):
        send(ToWebhook(url=url, secret=KEY), notice())


def test_a_redirect_is_not_followed() -> None:
    with Desk(status=307).open() as url, pytest.raises(NotSent, match="status 307"):
        send(ToWebhook(url=url, secret=KEY), notice())


def test_nobody_listens() -> None:
    with pytest.raises(NotSent, match="ConnectError") as error:
        send(ToWebhook(url=f"http://127.0.0.1:{free_port()}/secret-path", secret=KEY), notice())
    assert "secret-path" not in str(error.value)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PATIENCE", 0.3)
    with silent_server() as port:
        with pytest.raises(NotSent, match="ReadTimeout"):
            send(ToWebhook(url=f"http://127.0.0.1:{port}/", secret=KEY), notice())
        with pytest.raises(NotSent):
            send(mail(port), notice())


# --- mail --------------------------------------------------------------------------------------------------------


@dataclass
class Post:
    """A mail server: speaks enough SMTP to take a mail, or to refuse whom it does not know."""

    unknown: frozenset[str] = frozenset()
    offers: str = "8BITMIME"
    mails: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rw", encoding="utf-8", newline="\r\n") as talk:

            def say(line: str) -> None:
                talk.write(f"{line}\r\n")
                talk.flush()

            say("220 post")
            while line := talk.readline().strip():
                self.commands.append(line)
                match line.split(":")[0].split()[0].upper():
                    case "EHLO":
                        say("250-post")
                        say(f"250 {self.offers}")
                    case "RCPT" if any(each in line for each in self.unknown):
                        say("550 nobody of that name")
                    case "DATA":
                        say("354 go on")
                        self.mails.append("".join(iter(talk.readline, ".\r\n")))
                        say("250 taken")
                    case "QUIT":
                        say("221 bye")
                        return
                    case _:
                        say("250 ok")


def mail(port: int, **changes: Any) -> ToEmail:
    return ToEmail(
        **{
            "to": ("a@example.org", "b@example.org"),
            "sender": "reservoir@example.org",
            "host": "127.0.0.1",
            "port": port,
            "tls": False,
            **changes,
        }
    )


def test_a_mail_is_handed_to_the_server() -> None:
    post, told = Post(), notice()
    with listening(post.serve) as port:
        assert send(mail(port), told) == "taken for 2 of 2"
    message = message_from_string(post.mails[0])
    assert message["Subject"] == "[Reservoir] Alarm: vienna is silent"
    assert message["To"] == "a@example.org, b@example.org"
    assert message["Message-ID"] == f"<{told.id}@example.org>"
    text = message.get_payload(decode=True).decode()  # type: ignore[union-attr]
    assert "detail: für 6 h" in text
    assert "runbook: docs/alarms.md#silence" in text


def test_the_mail_of_a_recovery_says_that_it_is_over() -> None:
    post = Post()
    with listening(post.serve) as port:
        send(mail(port), notice(News.RECOVERED))
    assert message_from_string(post.mails[0])["Subject"] == "[Reservoir] Over: vienna is silent"


def test_who_is_refused_does_not_stop_the_others() -> None:
    post = Post(unknown=frozenset({"a@example.org"}))
    with listening(post.serve) as port:
        assert send(mail(port), notice()) == "taken for 1 of 2"
    with listening(Post(unknown=frozenset({"@"})).serve) as port, pytest.raises(NotSent):
        send(mail(port), notice())


def test_a_password_never_goes_in_clear() -> None:
    """A server without TLS does not get to see it."""
    post = Post()
    with listening(post.serve) as port, pytest.raises(NotSent, match="SMTPNotSupportedError"):
        send(mail(port, user="me", password="pass-word"), notice())
    assert not any(command.startswith("AUTH") for command in post.commands)


# --- command -----------------------------------------------------------------------------------------------------


def program(text: str, *words: str) -> ToCommand:
    return ToCommand(words=(sys.executable, "-c", text, *words))


def test_a_command_reads_the_notice_and_none_of_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESERVOIR_SECRET", "0123456789abcdef")
    told, file = notice(), tmp_path / "told; touch x"
    text = (
        "import json, os, sys\n"
        "json.dump([json.load(sys.stdin), sorted(os.environ)], open(sys.argv[1], 'w'))\n"
        "sys.stdin.read()"
    )
    assert send(program(text, str(file)), told) == "exit code 0"
    content, names = json.loads(file.read_text())
    assert content == told.content
    assert "PATH" in names
    assert not any(name.startswith("RESERVOIR") for name in names)


def test_a_command_that_fails() -> None:
    with pytest.raises(NotSent, match="exit code 3"):
        send(program("raise SystemExit(3)"), notice())
    with pytest.raises(NotSent, match="No such file"):
        send(ToCommand(words=("/nowhere/page",)), notice())


def test_a_command_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PATIENCE", 0.5)
    with pytest.raises(NotSent, match="was killed"):
        send(program("import time; time.sleep(60)"), notice())


def test_a_trial_says_that_it_is_one() -> None:
    told = for_trial(NOON, "test-host")
    assert told.headline == "Test: this is a test"
    assert told.content["type"] == "alarms.test"
