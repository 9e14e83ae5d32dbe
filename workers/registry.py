"""Finds the providers by listing `workers/providers/`, and checks a configuration against what they declare.

Run as a module it prints the table of the providers' promises.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

import workers.providers
from schemas.delivery import door_of
from schemas.endpoints import COMMON, Config, ConfigError, Endpoint, did_you_mean
from workers.provider import Provider


@cache
def discover() -> Mapping[str, Provider]:
    """Every provider by name: the file `workers/providers/<name>.py` holds it as `PROVIDER`."""
    names = sorted(module.name for module in pkgutil.iter_modules(workers.providers.__path__))
    return MappingProxyType({name: import_module(f"workers.providers.{name}").PROVIDER for name in names})


def check(config: Config) -> None:
    """Raises ConfigError on the first thing in the configuration that a provider cannot work with."""
    for endpoint in config:
        where = f"{config.file}: endpoints.{endpoint.name}"
        provider = discover().get(endpoint.provider)
        if provider is None:
            names = ", ".join(discover())
            mend = did_you_mean(endpoint.provider, discover())
            raise ConfigError(f"{where}.provider", f"{endpoint.provider!r} is unknown; use one of {names}{mend}")
        _check_options(where, endpoint, provider)
        _check_zone(where, endpoint, provider)
        _check_secrets(where, endpoint, provider)


def check_access(config: Config, kept_tokens: Collection[str]) -> None:
    """Raises ConfigError for an endpoint that can do nothing: no secrets, and no token kept in Postgres."""
    for endpoint in config:
        provider = discover()[endpoint.provider]
        complete = any(endpoint.has(*secrets) for secrets in provider.secrets)
        if provider.needs_secrets and not complete and endpoint.name not in kept_tokens:
            ways = " or ".join(_variables(endpoint, secrets) for secrets in provider.secrets)
            raise ConfigError(
                f"{config.file}: endpoints.{endpoint.name}",
                f"{provider.title} has no content without its API; set {ways} in the environment",
            )


def _check_options(where: str, endpoint: Endpoint, provider: Provider) -> None:
    for key, value in endpoint.options.items():
        option = provider.options.get(key)
        if option is None:
            known = [*COMMON, *provider.options]
            mend = did_you_mean(key, known)
            raise ConfigError(f"{where}.{key}", f"unknown key{mend}; remove it, or use one of {', '.join(known)}")
        if not isinstance(value, option.kind) or (option.kind is int and isinstance(value, bool)):
            raise ConfigError(f"{where}.{key}", f"takes {_WORDS.get(option.kind, option.kind.__name__)}")
        mend_needed = option.check(value)
        if mend_needed:
            raise ConfigError(f"{where}.{key}", mend_needed)


_WORDS: Mapping[type, str] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
}


def _check_zone(where: str, endpoint: Endpoint, provider: Provider) -> None:
    if provider.needs_timezone and endpoint.timezone is None:
        raise ConfigError(
            f"{where}.timezone", f'is missing; {provider.title} sends wall-clock times: timezone = "Europe/Vienna"'
        )


def _check_secrets(where: str, endpoint: Endpoint, provider: Provider) -> None:
    """Half a set of secrets is a mistake; none at all can be meant."""
    for secrets in provider.secrets:
        held = [what for what in secrets if endpoint.has(what)]
        if held and len(held) < len(secrets):
            missing = next(what for what in secrets if what not in held)
            raise ConfigError(
                where, f"{endpoint.variable(missing)} is not set; it belongs to {_variables(endpoint, tuple(held))}"
            )
    if provider.api_base(endpoint) is None and provider.api_url is None and _holds_any(endpoint, provider):
        raise ConfigError(f"{where}.api_url", f"is missing; {provider.title} has no common API host")


def _holds_any(endpoint: Endpoint, provider: Provider) -> bool:
    return any(endpoint.has(*secrets) for secrets in provider.secrets)


def _variables(endpoint: Endpoint, whats: tuple[str, ...]) -> str:
    return " and ".join(endpoint.variable(what) for what in whats)


def promises() -> str:
    """What the providers promise, as a Markdown table."""
    lines = ["| provider | answers within | sends again | its documentation |", "| --- | --- | --- | --- |"]
    for provider in discover().values():
        door = door_of(provider.name)
        deadline = f"{door.deadline.total_seconds():g} s" if door.deadline else "promptly"
        again = "yes" if door.sends_again else "never"
        lines.append(f"| {provider.title} | {deadline} | {again} | {provider.docs} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(promises())  # noqa: T201  (a page of the documentation is made with it)
