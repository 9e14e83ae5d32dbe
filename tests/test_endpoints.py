"""`reservoir.toml` as values: what is read, what is refused and how the refusal reads, the tokens of the URLs."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import settings as receiver_settings
from schemas.endpoints import ConfigError, Endpoint, installation_secret, load, parse, path, token
from workers import settings as worker_settings

SECRET = "an installation's secret of some length"
VENUE = '[endpoints.arcade-vienna]\nprovider = "synthesisvr"\ntimezone = "Europe/Vienna"\n'


def only(text: str, environment: dict[str, str] | None = None) -> Endpoint:
    """The one endpoint of a configuration."""
    (endpoint,) = parse(tomllib.loads(text), "reservoir.toml", environment or {})
    return endpoint


# --- what is read --------------------------------------------------------------------------------------------


def test_an_endpoint_with_everything() -> None:
    """The common keys become fields; all others are the provider's to check."""
    endpoint = only(
        VENUE
        + 'api_url = "https://api.example.org/v1/"\ncalls_per_second = 20\ngeneration = 3\n'
        + 'previous_until = 2026-12-31\nflavour = "dark"\n'
    )
    assert endpoint == Endpoint(
        name="arcade-vienna",
        provider="synthesisvr",
        timezone="Europe/Vienna",
        api_url="https://api.example.org/v1",
        calls_per_second=20.0,
        generation=3,
        previous_until=datetime(2026, 12, 31, 23, 59, 59, 999999, UTC),
        options={"flavour": "dark"},
    )


@pytest.mark.parametrize(("written", "calls"), [("5", 5.0), ("0.5", 0.5), ("0.01", 0.01), ("1e3", 1000.0)])
def test_calls_per_second(written: str, calls: float) -> None:
    """A whole number or a fraction, as a float."""
    found = only(f"{VENUE}calls_per_second = {written}").calls_per_second
    assert (found, type(found)) == (calls, float)


@pytest.mark.parametrize(
    ("written", "until"),
    [
        ("2026-12-31", datetime(2026, 12, 31, 23, 59, 59, 999999, UTC)),  # until that day is over
        ("2026-12-31T12:00:00", datetime(2026, 12, 31, 12, tzinfo=UTC)),
        ("2026-12-31T12:00:00+02:00", datetime(2026, 12, 31, 10, tzinfo=UTC)),
    ],
)
def test_the_end_of_the_previous_generation(written: str, until: datetime) -> None:
    """It always has a time zone; without one it is UTC."""
    found = only(f"{VENUE}previous_until = {written}").previous_until
    assert found == until
    assert found is not None
    assert found.utcoffset() is not None


def test_secrets_are_found_by_the_name_of_their_variable() -> None:
    """The file never holds them, the value knows only which there are; blank is absent."""
    environment = {
        "RESERVOIR_ARCADE_VIENNA_API_KEY": "k-1",
        "RESERVOIR_ARCADE_VIENNA_API_SECRET": "  ",
        "RESERVOIR_ARCADE_VIENNA_COLOUR": "red",
        "RESERVOIR_ARCADE_API_SECRET": "of another endpoint",
    }
    endpoint = only(VENUE, environment)
    assert endpoint.secrets == {"api_key"}
    assert endpoint.has("api_key")
    assert not endpoint.has("api_key", "api_secret")
    assert endpoint.variable("webhook_secret") == "RESERVOIR_ARCADE_VIENNA_WEBHOOK_SECRET"
    assert "k-1" not in repr(endpoint)


# --- what is refused -----------------------------------------------------------------------------------------

REFUSALS = {
    'colour = "red"': ("reservoir.toml: colour", "remove it"),
    "[endpoint.x]": ("reservoir.toml: endpoint", "did you mean endpoints?"),
    "endpoints = 5": ("reservoir.toml: endpoints", "write [endpoints.my-venue]"),
    "": ("reservoir.toml: endpoints", "add [endpoints.my-venue]"),
    "[endpoints]": ("reservoir.toml: endpoints", "add [endpoints.my-venue]"),
    "[endpoints]\nvienna = 5": ("reservoir.toml: endpoints.vienna", "write [endpoints.vienna]"),
    '[endpoints."Vienna"]': ("reservoir.toml: endpoints.Vienna", "use a-z, 0-9 and '-'"),
    '[endpoints."-vienna"]': ("reservoir.toml: endpoints.-vienna", "use a-z, 0-9 and '-'"),
    f'[endpoints."{"v" * 64}"]': ("reservoir.toml: endpoints.vvv", "at most 63"),
    '[endpoints."vien\\nna"]': ("reservoir.toml: endpoints.vien na", "use a-z, 0-9 and '-'"),
    '[endpoints."../x"]': ("reservoir.toml: endpoints.../x", "use a-z, 0-9 and '-'"),
    "[endpoints.vienna]": ("reservoir.toml: endpoints.vienna.provider", 'write for example provider = "lockme"'),
    "[endpoints.vienna]\nprovider = 5": ("reservoir.toml: endpoints.vienna.provider", "takes a text"),
    VENUE + "generation = 0": ("reservoir.toml: endpoints.arcade-vienna.generation", "counts from 1"),
    VENUE + "generation = true": ("reservoir.toml: endpoints.arcade-vienna.generation", "takes a whole number"),
    VENUE + 'generation = "2"': ("reservoir.toml: endpoints.arcade-vienna.generation", "takes a whole number"),
    VENUE + 'previous_until = "soon"': ("reservoir.toml: endpoints.arcade-vienna.previous_until", "takes a date"),
    VENUE + "previous_until = 07:30:00": ("reservoir.toml: endpoints.arcade-vienna.previous_until", "takes a date"),
    VENUE.replace("Vienna", "Viena"): (
        "reservoir.toml: endpoints.arcade-vienna.timezone",
        "did you mean Europe/Vienna?",
    ),
    VENUE + 'api_url = "api.example.org"': ("reservoir.toml: endpoints.arcade-vienna.api_url", "https://host/path"),
    VENUE + 'api_url = "https://h/?q=1"': ("reservoir.toml: endpoints.arcade-vienna.api_url", "https://host/path"),
    VENUE + 'api_url = "https://h:port/"': ("reservoir.toml: endpoints.arcade-vienna.api_url", "https://host/path"),
    VENUE + 'api_url = "https://[::1/"': ("reservoir.toml: endpoints.arcade-vienna.api_url", "https://host/path"),
    **{
        f"{VENUE}calls_per_second = {slip}": ("reservoir.toml: endpoints.arcade-vienna.calls_per_second", mend)
        for slip, mend in {
            '"5"': "takes a number, not '5'",
            "true": "takes a number, not True",
            "0": "write a number from 0.01 to 1000",
            "-5": "write a number from 0.01 to 1000",
            "0.001": "write a number from 0.01 to 1000",
            "1001": "write a number from 0.01 to 1000",
            "inf": "write a number from 0.01 to 1000",
            "nan": "write a number from 0.01 to 1000",
        }.items()
    },
    "[endpoints.vienna": ("reservoir.toml", "mend that line"),
    "[endpoints.vienna]\nprovider =": ("reservoir.toml", "mend that line"),
}


@pytest.mark.parametrize("text", REFUSALS, ids=lambda text: text.replace("\n", " ")[:60])
def test_a_refusal_names_file_key_and_mend_in_one_line(text: str, tmp_path: Path) -> None:
    """Whoever reads it at the start of a process knows what to do."""
    where, mend = REFUSALS[text]
    (tmp_path / "reservoir.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path / "reservoir.toml", {})
    said = str(refusal.value)
    assert said.startswith(f"{tmp_path}/{where}")
    assert mend in said
    assert len(said.splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It is named, with the way out."""
    with pytest.raises(ConfigError, match=r"reservoir\.toml: no such file; .*--config"):
        load(tmp_path / "reservoir.toml", {})
    with pytest.raises(ConfigError, match=r"cannot be read .*permissions"):
        load(tmp_path, {})


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are no TOML."""
    (tmp_path / "reservoir.toml").write_bytes(b'[endpoints.x]\nprovider = "\xff"')
    with pytest.raises(ConfigError, match="is no TOML"):
        load(tmp_path / "reservoir.toml", {})


WORDS = st.text(max_size=5)
VALUES = WORDS | st.integers() | st.booleans() | st.floats() | st.dates() | st.datetimes() | st.lists(WORDS, max_size=2)
KEYS = st.sampled_from(["provider", "timezone", "api_url", "calls_per_second", "generation", "previous_until"]) | WORDS


@given(WORDS, st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(WORDS, VALUES, max_size=1))
def test_any_document_is_read_or_refused_in_one_line(name: str, table: dict[str, Any], more: dict[str, Any]) -> None:
    """No document of whatever content ends in another error."""
    said = "read"
    try:
        parse({"endpoints": {name or "vienna": table}, **more}, "reservoir.toml", {})
    except ConfigError as refusal:
        said = str(refusal)
    assert len(said.splitlines()) == 1


# --- the environment of a process ----------------------------------------------------------------------------

WHOLE = {
    "REDIS_URL": "redis://:pass-word@localhost/0",
    "DATABASE_URL": "postgresql://u:pass-word@localhost/r",
    "RESERVOIR_SECRET": SECRET,
    "RESERVOIR_ARCADE_VIENNA_API_KEY": " the-key ",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """All that a process needs."""
    (tmp_path / "reservoir.toml").write_text(VENUE, encoding="utf-8")
    return {**WHOLE, "RESERVOIR_CONFIG": str(tmp_path / "reservoir.toml")}


@pytest.mark.parametrize("read", [receiver_settings.read, worker_settings.read])
@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("REDIS_URL", "", "`reservoir up` sets it"),
        ("RESERVOIR_SECRET", "", "set it to 32 random characters"),
        ("RESERVOIR_SECRET", "swordfish", "at least 16 random characters"),
    ],
)
def test_a_variable_that_is_missing(read: Any, name: str, value: str, mend: str, environment: dict[str, str]) -> None:
    """Receiver and worker refuse to start, and say which one."""
    with pytest.raises(ConfigError) as refusal:
        read(environment | {name: value})
    assert str(refusal.value).startswith(f"{name}: ")
    assert mend in str(refusal.value)
    assert not value or value not in str(refusal.value)


def test_the_receiver_needs_no_database_and_no_provider_secret(environment: dict[str, str]) -> None:
    """It faces the internet, so it holds nothing that it can do without."""
    environment.pop("DATABASE_URL")
    settings = receiver_settings.read(environment)
    assert settings.body_limit == 1024 * 1024
    assert settings.patience == 0.15
    with pytest.raises(ConfigError, match="DATABASE_URL: is not set"):
        worker_settings.read(environment)


@pytest.mark.parametrize("value", ["0", "-1", "1 MiB", "1e6", "²"])
def test_the_body_limit_is_a_number_of_bytes(value: str, environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="RESERVOIR_BODY_LIMIT: takes a whole number of bytes above 0"):
        receiver_settings.read(environment | {"RESERVOIR_BODY_LIMIT": value})
    assert receiver_settings.read(environment | {"RESERVOIR_BODY_LIMIT": "2048"}).body_limit == 2048


def test_settings_do_not_show_secrets(environment: dict[str, str]) -> None:
    """A traceback with locals, or a log line, may print them whole."""
    shown = repr(receiver_settings.read(environment)) + repr(worker_settings.read(environment))
    assert "pass-word" not in shown
    assert "the-key" not in shown
    assert SECRET not in shown


def test_a_worker_finds_the_values_of_an_endpoints_secrets(environment: dict[str, str]) -> None:
    """Without the blanks that a copy from a dashboard brings along."""
    settings = worker_settings.read(environment)
    (endpoint,) = settings.config
    assert settings.secrets_of(endpoint) == {"api_key": "the-key"}


# --- tokens --------------------------------------------------------------------------------------------------


def test_a_token_depends_on_secret_name_and_generation() -> None:
    """The same again for the same three, another one for any other."""
    tokens = {
        token(secret, name, generation)
        for secret in (SECRET, SECRET + "!")
        for name in ("vienna", "vienn", "vienna1")
        for generation in (1, 2, 11)
    }
    assert len(tokens) == 18
    assert token(SECRET, "vienna", 1) == token(SECRET, "vienna", 1)
    assert all(len(one) == 40 and one.isalnum() for one in tokens)


def test_a_token_stays_what_it_was() -> None:
    """The URLs stand in the providers' dashboards: a release that changes them loses every webhook."""
    assert token("0123456789abcdef", "arcade-vienna", 1) == "ce06d2c5d566b6103b2ac5443fa500ff18d01c1a"


def test_rotating_changes_the_url_and_nothing_else() -> None:
    first = Endpoint(name="vienna", provider="timekit")
    second = Endpoint(name="vienna", provider="timekit", generation=2)
    assert path(SECRET, first) == f"/hooks/vienna/{token(SECRET, 'vienna', 1)}"
    assert path(SECRET, second) == f"/hooks/vienna/{token(SECRET, 'vienna', 2)}"


def test_the_secret_of_the_installation() -> None:
    assert installation_secret({"RESERVOIR_SECRET": SECRET}) == SECRET
