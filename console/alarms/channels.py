"""How a notice leaves: as a signed webhook, as a mail, to a command. Each says how it went, in a few words.

One try, in a time that holds; when to try again is `ledger`'s affair. No error quotes an address, a password or what a
server said beyond its status.
"""

from __future__ import annotations

import os
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any, Final

import httpx
from standardwebhooks import Webhook

from console.alarms.notice import Notice
from console.alarms.settings import Target, ToCommand, ToEmail, ToWebhook
from schemas.delivery import now

PATIENCE: Final = 10.0
"""Seconds for one try."""
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER")
"""Of our environment, what a command may see: none of our secrets."""


class NotSent(Exception):
    """It did not get there; why, in a few words."""


def send(target: Target, notice: Notice) -> str:
    """What the other side answered. Raises NotSent."""
    return _SENDERS[type(target)](target, notice)


# --- webhook -----------------------------------------------------------------------------------------------------


def _post(target: ToWebhook, notice: Notice) -> str:
    body, at = notice.json, now()
    headers = {
        "content-type": "application/json",
        "user-agent": "reservoir",
        "webhook-id": str(notice.id),
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(target.secret).sign(str(notice.id), at, body),
    }
    try:
        with httpx.Client(timeout=PATIENCE, follow_redirects=False) as client:
            answer = client.post(target.url, content=body.encode(), headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise NotSent(type(error).__name__) from None
    if not answer.is_success:
        raise NotSent(f"status {answer.status_code}")
    return f"status {answer.status_code}"


# --- mail --------------------------------------------------------------------------------------------------------


def _mail(target: ToEmail, notice: Notice) -> str:
    message = EmailMessage()
    message["From"], message["To"] = target.sender, ", ".join(target.to)
    message["Subject"] = f"[Reservoir] {notice.headline}"
    message["Date"] = format_datetime(notice.at)
    message["Message-ID"] = f"<{notice.id}@{target.sender.partition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(notice.text)
    try:
        refused = _hand_over(target, message)
    except smtplib.SMTPResponseException as error:
        raise NotSent(f"the mail server said {error.smtp_code}") from None
    except (smtplib.SMTPException, OSError) as error:
        raise NotSent(type(error).__name__) from None
    return f"taken for {len(target.to) - len(refused)} of {len(target.to)}"


def _hand_over(target: ToEmail, message: EmailMessage) -> Mapping[str, Any]:
    """The addresses that were refused, where it was not all of them. Raises smtplib.SMTPException, OSError."""
    secure = ssl.create_default_context()
    with (
        smtplib.SMTP_SSL(target.host, target.port, timeout=PATIENCE, context=secure)
        if target.tls
        else smtplib.SMTP(target.host, target.port, timeout=PATIENCE)
    ) as server:
        server.ehlo()
        if not target.tls and (target.user or server.has_extn("starttls")):
            server.starttls(context=secure)  # raises where there is none: a password does not go in clear
            server.ehlo()
        if target.user and target.password:
            server.login(target.user, target.password)
        return server.send_message(message)


# --- command -----------------------------------------------------------------------------------------------------


def _run(target: ToCommand, notice: Notice) -> str:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        done = subprocess.run(  # noqa: S603  (the configuration's own words, without a shell)
            target.words,
            input=notice.json.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotSent(f"it did not end within {PATIENCE:g} s and was killed") from None
    except OSError as error:
        raise NotSent(error.strerror or type(error).__name__) from None
    if done.returncode:
        raise NotSent(f"exit code {done.returncode}")
    return "exit code 0"


_SENDERS: Final[Mapping[type, Callable[[Any, Notice], str]]] = {ToWebhook: _post, ToEmail: _mail, ToCommand: _run}


def host() -> str:
    """By what this machine is called in a notice."""
    return socket.gethostname()
