"""`compose.yaml`, the Procfile and the balancer's configuration: valid, and each part knows only what it needs.

`compose-spec.json` is the schema of the Compose Specification (github.com/compose-spec/compose-spec, Apache-2.0), as
check-jsonschema 0.39.0 carries it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from console.processes import environment_of, procfile

PROJECT = Path(__file__).resolve().parent.parent
OURS = ("receiver", "worker", "beat", "console", "alarms", "metrics", "flower", "migrate", "cli")
SECRETS = {
    "DATABASE_URL": "postgresql://user:password@host/name",
    "RESERVOIR_ARCADE_VIENNA_API_KEY": "key",
    "RESERVOIR_DESK_API_SECRET": "secret",
    "RESERVOIR_ROOM_CLIENT_SECRET": "secret",
    "RESERVOIR_ROOM_ACCESS_TOKEN": "token",
    "PGPASSWORD": "password",
}


@pytest.fixture(scope="module")
def compose() -> Mapping[str, Any]:
    document: Mapping[str, Any] = yaml.safe_load((PROJECT / "compose.yaml").read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def services(compose: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = compose["services"]
    return found


def test_it_follows_the_specification(compose: Mapping[str, Any]) -> None:
    """Checked against the schema; and by Compose itself where there is one."""
    schema = json.loads((PROJECT / "tests" / "compose-spec.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    validator(schema).validate(compose)
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        environment = {"PATH": "/usr/bin:/bin", "RESERVOIR_SECRET": "x" * 32, "POSTGRES_PASSWORD": "y" * 32}
        subprocess.run([docker, "compose", "config", "--quiet"], cwd=PROJECT, env=environment, check=True)


def test_every_name_in_it_exists(compose: Mapping[str, Any], services: Mapping[str, Any]) -> None:
    """Networks, volumes, dependencies and mounted files: what the schema cannot see."""
    for name, service in services.items():
        assert set(service.get("networks", ())) <= set(compose["networks"]), name
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("./"), name
    assert (PROJECT / "deploy" / "haproxy.cfg").is_file()
    assert (PROJECT / "Dockerfile").is_file()


def test_the_receiver_knows_no_database_and_no_provider(services: Mapping[str, Any]) -> None:
    """It faces the internet: no DATABASE_URL, no secrets of endpoints, no way into the network of PostgreSQL."""
    receiver = services["receiver"]
    assert set(receiver["environment"]) == {
        "REDIS_URL",
        "RESERVOIR_SECRET",
        "RESERVOIR_CONFIG",
        "RESERVOIR_SPOOL_DIR",
        "PROMETHEUS_MULTIPROC_DIR",
    }
    assert "env_file" not in receiver
    assert set(receiver["networks"]) & set(services["postgres"]["networks"]) == set()
    assert {name for name, service in services.items() if "env_file" in service} == {"worker", "cli"}


def test_only_the_balancer_is_open_to_the_world(services: Mapping[str, Any]) -> None:
    """The metrics have no password, the console and Flower are for few: on the loopback interface only."""
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"balancer", "console", "metrics", "flower"}
    assert all(port.startswith("127.0.0.1:") for name in ("console", "metrics", "flower") for port in published[name])


def test_what_a_receiver_confirms_is_on_the_disk(services: Mapping[str, Any]) -> None:
    """The promise behind a 2xx: Redis syncs every write, drops nothing, and keeps its file in a volume."""
    command = " ".join(services["redis"]["command"])
    for setting in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
        assert setting in command
    assert services["redis"]["volumes"] == ["redis:/data"]
    assert services["postgres"]["image"].startswith("postgres:18")


def test_what_a_receiver_spools_outlives_it(services: Mapping[str, Any]) -> None:
    """In a volume that every receiver shares, that nobody else may write, and that the image's user may write into."""
    receiver = services["receiver"]
    place = receiver["environment"]["RESERVOIR_SPOOL_DIR"]
    assert f"spool:{place}" in receiver["volumes"]
    assert set(services["beat"]["volumes"]) < {*receiver["volumes"]}
    with_it = {name for name, service in services.items() if f"spool:{place}" in service.get("volumes", ())}
    assert with_it == {"receiver"}
    image = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    (user,) = re.findall(r"(?m)^USER (\d+)$", image)
    assert re.search(rf"install --directory --owner={user} --mode=0700 {place}\b", image)


def test_a_stop_waits_for_what_is_under_way(services: Mapping[str, Any]) -> None:
    """Longer than a receiver gives its requests, and than a worker may ask a provider's API."""
    command = " ".join(services["receiver"]["command"])
    (graceful,) = re.findall(r"--timeout-graceful-shutdown=(\d+)", command)
    assert int(services["receiver"]["stop_grace_period"].removesuffix("s")) > int(graceful)
    assert int(services["worker"]["stop_grace_period"].removesuffix("s")) > 30


def test_who_has_no_deadline_makes_way(services: Mapping[str, Any]) -> None:
    """A backlog must not slow an answer down: workers, beat and Flower come after the receiver."""
    for name in ("worker", "beat", "console", "alarms", "metrics", "flower"):
        assert procfile()[name].startswith("nice ")
        assert services[name]["cpu_shares"] < 1024
    assert not procfile()["web"].startswith("nice ")
    assert "cpu_shares" not in services["receiver"]


def test_migrations_run_once_and_before_the_workers(services: Mapping[str, Any]) -> None:
    """Workers and beat wait for its success."""
    assert services["migrate"]["command"] == ["reservoir", "migrate"]
    for name in ("worker", "beat"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", ["balancer", "receiver", "worker", "flower", "redis", "postgres"])
def test_it_is_asked_for_its_health(services: Mapping[str, Any], name: str) -> None:
    """Whatever can hang is asked."""
    assert services[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_little(services: Mapping[str, Any], name: str) -> None:
    """No capabilities, nothing to write but /tmp, no way to more rights."""
    service = services[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_scaled_services_have_no_name_or_port_of_their_own(services: Mapping[str, Any]) -> None:
    """`--scale receiver=2 --scale worker=3` would fail on either."""
    for name in ("receiver", "worker"):
        assert not {"container_name", "ports"} & set(services[name])


@pytest.mark.parametrize(("service", "process"), [("receiver", "web"), ("worker", "worker"), ("beat", "beat")])
def test_containers_and_procfile_run_the_same(services: Mapping[str, Any], service: str, process: str) -> None:
    """Every option of the Procfile, but for addresses, is one of the container's as well.

    A worker's own name is its container's.
    """
    line = procfile()[process]
    words = " ".join(services[service]["command"]).replace("=", " ").split()
    for option in {*re.findall(r"--[a-z-]+", line)} - {"--hostname"}:
        assert option in words, option


def test_the_procfile_names_the_processes() -> None:
    """One line each; the receiver writes no access log, because the path holds the endpoint's token."""
    assert list(procfile()) == ["web", "worker", "beat", "console", "alarms", "metrics", "flower"]
    assert "--no-access-log" in procfile()["web"]


@pytest.mark.parametrize(
    ("process", "known"),
    [
        ("web", {"REDIS_URL", "RESERVOIR_SECRET"}),
        ("beat", {"REDIS_URL"}),
        ("flower", {"REDIS_URL", "FLOWER_BASIC_AUTH"}),
        ("metrics", {"REDIS_URL", "DATABASE_URL"}),
        ("console", {"REDIS_URL", "RESERVOIR_SECRET", "DATABASE_URL"}),
        ("alarms", {"REDIS_URL", "DATABASE_URL"}),
        ("worker", {"REDIS_URL", "RESERVOIR_SECRET", "FLOWER_BASIC_AUTH", *SECRETS}),
    ],
)
def test_up_gives_a_process_the_secrets_that_it_needs(process: str, known: set[str]) -> None:
    """The same fences as between the containers, on a laptop."""
    addresses = {"REDIS_URL": "unix:///redis", "RESERVOIR_SECRET": "x" * 32, "PORT": "8000"}
    given = {**SECRETS, "FLOWER_BASIC_AUTH": "one:x", "HOME": "/home/x", "RESERVOIR_CONCURRENCY": "2"}
    environment = environment_of(process, addresses, given)
    assert set(environment) - {"HOME", "PATH", "PORT", "RESERVOIR_CONCURRENCY", "PYTHONUNBUFFERED"} == known


def test_the_balancer_tries_again_only_where_nothing_was_kept() -> None:
    """A refused connection, or one that a receiver closed without a word, as one that is being replaced does; never a
    silence or a 503, after which a second copy could overtake newer news."""
    settings = (PROJECT / "deploy" / "haproxy.cfg").read_text(encoding="utf-8")
    assert re.findall(r"^ *retry-on (.*)$", settings, re.MULTILINE) == ["conn-failure empty-response"]
    assert "httpchk GET /readyz" in settings
    formats = re.findall(r'log-format "(.*)"', settings)
    assert formats
    assert not re.search(r"%(r|HP|HU|HPO|HQ)\b|%\{", " ".join(formats)), "the path holds the endpoint's token"


def test_an_idle_connection_is_kept_longer_than_senders_keep_it() -> None:
    """Many clients keep one for five seconds, as uvicorn does by default; a request that is written into a connection
    which is just being closed is lost without an answer."""
    kept = re.compile(r"--timeout-keep-alive[= ](\d+)")
    for file in ("Procfile", "compose.yaml"):
        (seconds,) = kept.findall((PROJECT / file).read_text(encoding="utf-8"))
        assert int(seconds) >= 75, file
    assert "timeout http-keep-alive 75s" in (PROJECT / "deploy" / "haproxy.cfg").read_text(encoding="utf-8")
