"""`[alarms]` and `silence` in reservoir.toml: what they become, and how a mistake in them is told."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from typing import Any

import pytest

from console.alarms.settings import SMTP_PASSWORD, WEBHOOK_SECRET, ToCommand, ToEmail, ToWebhook, targets
from schemas.endpoints import Config, ConfigError, parse

VENUE = '[endpoints.vienna]\nprovider = "checkfront"\n'
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECRETS = {WEBHOOK_SECRET: KEY, SMTP_PASSWORD: "pass-word"}


def config(text: str) -> Config:
    return parse(tomllib.loads(text), "reservoir.toml", {})


def test_the_channels_of_a_full_table() -> None:
    table = """
        [alarms]
        webhook = "https://example.org/alarms"
        email_to = ["a@example.org", "b@example.org"]
        email_from = "reservoir@example.org"
        smtp = "smtps://me%40example.org@mail.example.org"
        command = ["/bin/page", "--now"]
    """
    assert targets(config(table + VENUE), SECRETS) == {
        "webhook": ToWebhook(url="https://example.org/alarms", secret=KEY),
        "email": ToEmail(
            to=("a@example.org", "b@example.org"),
            sender="reservoir@example.org",
            host="mail.example.org",
            port=465,
            tls=True,
            user="me@example.org",
            password="pass-word",
        ),
        "command": ToCommand(words=("/bin/page", "--now")),
    }


def test_without_a_table_there_is_no_channel() -> None:
    assert targets(config(VENUE), {}) == {}


def test_one_address_may_stand_without_a_list_and_a_relay_needs_no_user() -> None:
    (mail,) = targets(config('[alarms]\nemail_to = "a@example.org"\nsmtp = "smtp://localhost"\n' + VENUE), {}).values()
    assert isinstance(mail, ToEmail)
    assert (mail.to, mail.port, mail.tls, mail.user) == (("a@example.org",), 587, False, None)


def test_no_secret_is_shown() -> None:
    table = '[alarms]\nwebhook = "https://h/x"\nemail_to = "a@b.org"\nsmtp = "smtp://u@h"\n'
    shown = repr(targets(config(table + VENUE), SECRETS))
    assert KEY not in shown
    assert "pass-word" not in shown


MAIL = 'email_to = "a@b.org"\n'
REFUSALS: dict[str, tuple[str, str]] = {
    'web_hook = "https://h"': ("reservoir.toml: alarms.web_hook", "did you mean webhook?"),
    'webhook = "example.org"': ("reservoir.toml: alarms.webhook", "https://host/path"),
    'webhook = "https://h:port/"': ("reservoir.toml: alarms.webhook", "https://host/path"),
    "webhook = 5": ("reservoir.toml: alarms.webhook", "takes a text"),
    MAIL: ("reservoir.toml: alarms.smtp", "is missing"),
    'smtp = "smtp://h"': ("reservoir.toml: alarms.email_to", "is missing"),
    'email_to = []\nsmtp = "smtp://h"': ("reservoir.toml: alarms.email_to", 'write ["you@example.org"]'),
    'email_to = ["desk"]\nsmtp = "smtp://h"': ("reservoir.toml: alarms.email_to", "you@example.org"),
    'email_to = ["a@b.org\\nBcc: c@d.org"]\nsmtp = "smtp://h"': ("reservoir.toml: alarms.email_to", "you@example.org"),
    MAIL + 'smtp = "mail.example.org"': ("reservoir.toml: alarms.smtp", "smtp://user@host:587"),
    MAIL + 'smtp = "https://h"': ("reservoir.toml: alarms.smtp", "smtp://user@host:587"),
    MAIL + 'smtp = "smtp://me:hidden@h"': ("reservoir.toml: alarms.smtp", f"set {SMTP_PASSWORD}"),
    MAIL + 'smtp = "smtp://me@h"': (SMTP_PASSWORD, "is not set"),
    'command = "page me"': ("reservoir.toml: alarms.command", "no shell reads it"),
    "command = []": ("reservoir.toml: alarms.command", "no shell reads it"),
    'webhook = "https://h/"': (WEBHOOK_SECRET, "is not set"),
}


@pytest.mark.parametrize("table", REFUSALS, ids=lambda text: text.replace("\n", " "))
def test_a_refusal_names_the_place_and_the_mend(table: str) -> None:
    where, mend = REFUSALS[table]
    with pytest.raises(ConfigError) as refusal:
        targets(config(f"[alarms]\n{table}\n{VENUE}"), {})
    said = str(refusal.value)
    assert said.startswith(f"{where}: ")
    assert mend in said
    assert "hidden" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("secret", ["swordfish", "whsec_", "whsec_c2hvcnQ=", "not base64 at all"])
def test_a_weak_webhook_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        targets(config('[alarms]\nwebhook = "https://h/"\n' + VENUE), {WEBHOOK_SECRET: secret})
    assert str(refusal.value).startswith(f"{WEBHOOK_SECRET}: is no key")
    assert secret == "whsec_" or secret not in str(refusal.value)


def test_alarms_is_a_table() -> None:
    with pytest.raises(ConfigError, match=r"reservoir\.toml: alarms: must be a table"):
        config("alarms = 5\n" + VENUE)


@pytest.mark.parametrize(
    ("line", "silence"),
    [
        ("", None),
        ('silence = "off"', "off"),
        ('silence = "90m"', timedelta(minutes=90)),
        ('silence = "6h"', timedelta(hours=6)),
        ('silence = "2d"', timedelta(days=2)),
    ],
)
def test_how_long_an_endpoint_may_be_silent(line: str, silence: Any) -> None:
    assert config(VENUE + line).endpoints["vienna"].silence == silence


@pytest.mark.parametrize("silence", ['"6"', '"0h"', '"never"', '"-1h"', '"6h30m"', '"99999h"', "6", "true"])
def test_a_silence_that_is_none(silence: str) -> None:
    with pytest.raises(ConfigError, match=r"reservoir\.toml: endpoints\.vienna\.silence: "):
        config(f"{VENUE}silence = {silence}")
