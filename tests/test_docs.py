"""The pages: what they name is there, what is there is named, and every link leads somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import typer.main
from defusedxml import ElementTree

from console.alarms.findings import ALARMS
from console.cli import app
from console.processes import GRANTED, procfile
from console.samples import SAMPLES
from schemas.delivery import State
from schemas.endpoints import SECRET, WHATS, parse
from tests.certificates import self_signed
from workers import errors
from workers.registry import discover

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
OPERATING = (DOCS / "operating.md").read_text(encoding="utf-8")
UNITS = ROOT / "deploy" / "systemd"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks, also those inside a list, without its indent."""
    found = re.findall(rf"(?ms)^( *)```{language}\n(.*?)^ *```", text)
    return [re.sub(rf"(?m)^{indent}", "", block) for indent, block in found]


# --- links -------------------------------------------------------------------------------------------------------


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them of headings: small letters, no punctuation, dashes for blanks, a number for a repetition."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    found = []
    for heading in re.findall(r"(?m)^#+ +(.+?) *$", text):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return frozenset(found)


def leads_nowhere(base: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    page = (base / path) if path else base
    if not page.exists():
        return True
    return bool(anchor) and anchor not in anchors(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    lost = []
    for target in targets:
        if re.match(r"https?://|mailto:", target):
            continue
        if leads_nowhere(page if target.startswith("#") else page.parent, target):
            lost.append(target)
    assert lost == []


def mentions() -> Iterator[tuple[str, str]]:
    """Pages that code, settings and alert rules name: `docs/alarms.md#silence`."""
    for folder in ("console", "workers", "ingest", "schemas", "chaos", "bench", "deploy", "docs", "."):
        for file in (ROOT / folder).glob("*" if folder == "." else "**/*"):
            if (
                file.suffix in {".py", ".yml", ".yaml", ".toml", ".cfg", ".html", ".json", ".service", ""}
                and file.is_file()
            ):
                for found in re.findall(r"docs/[\w/-]+\.md(?:#[\w-]+)?", file.read_text(errors="replace")):
                    yield name_of(file), found


def test_every_page_that_is_named_elsewhere_is_there() -> None:
    named = set(mentions())
    assert any(file.endswith("alerts.yml") and "#" in target for file, target in named)
    assert {(file, target) for file, target in named if leads_nowhere(ROOT, target)} == set()


def test_every_page_is_reached_from_the_readme() -> None:
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        for target in targets:
            found = (page.parent / target).resolve()
            left += sorted(found.glob("*.md")) if found.is_dir() else [found] if found.suffix == ".md" else []
    assert {name_of(page) for page in PAGES} - {name_of(page) for page in reached} == set()


# --- commands ----------------------------------------------------------------------------------------------------


def told_commands() -> list[str]:
    """The lines of the pages' shell blocks that begin with our command."""
    lines = [
        line
        for page in PAGES
        for block in blocks(page.read_text(encoding="utf-8"), "sh")
        for line in block.splitlines()
    ]
    ours = (line.partition(" #")[0].partition(" < ")[0].partition(" | ")[0].strip() for line in lines)
    return sorted({line for line in ours if line.startswith("reservoir ")})


@pytest.mark.parametrize("line", told_commands())
def test_a_command_of_the_pages_is_one_of_ours(line: str) -> None:
    """The command and its options are there; a sample that it sends can be sent."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    _, left, _ = command.make_parser(command.context_class(command)).parse_args([*words])  # an unknown option raises
    assert left == []
    if line.startswith("reservoir send ") and not {"--list", "PROVIDER"} & {*words}:
        assert (words[0], words[1]) in {(sample.provider, sample.situation) for sample in SAMPLES}


def test_every_variable_of_the_pages_is_read_by_somebody() -> None:
    """In the code, or as a secret of an endpoint that `reservoir.toml` or a page's example has."""
    told = {
        name for page in PAGES for name in re.findall(r"RESERVOIR_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8"))
    }
    parts = ("console", "workers", "ingest", "schemas")
    code = "".join(file.read_text(encoding="utf-8") for part in parts for file in (ROOT / part).rglob("*.py"))
    read = set(re.findall(r'"(RESERVOIR_\w+)"', code)) | set(re.findall(r"\$\{(\w+):-", "".join(procfile().values())))
    secrets = re.compile(rf"RESERVOIR_[A-Z_]+_({'|'.join(what.upper() for what in WHATS)})")
    assert len(told) > 15
    assert {name for name in told - read if not secrets.fullmatch(name)} == set()


# --- the runbook -------------------------------------------------------------------------------------------------


def reasons() -> set[str]:
    """Of the classes that are raised as they are, and of the provider files, where they stand in quotes."""
    raised = {kind for kind in vars(errors).values() if isinstance(kind, type) and not kind.__subclasses__()}
    named = {kind.reason for kind in raised if issubclass(kind, errors.DeliveryError)}
    spoken = re.compile(r'(?:Ignored|Unsupported|Malformed)\([^)]*?reason="([a-z-]+)"', re.DOTALL)
    for file in (ROOT / "workers" / "providers").glob("*.py"):
        named |= set(spoken.findall(file.read_text(encoding="utf-8")))
    # Always given another reason where it is raised: by the provider's file, or by what was tried for 24 hours.
    return named - {errors.Unsupported.reason, errors.GaveUp.reason}


def test_every_reason_and_every_state_is_explained_to_operators() -> None:
    known = reasons()
    assert len(known) > 15
    assert {reason for reason in known if f"`{reason}`" not in OPERATING} == set()
    assert {state for state in State if f"`{state}`" not in OPERATING} == set()


@pytest.mark.parametrize("kind", ALARMS)
def test_every_alarm_has_its_runbook(kind: str) -> None:
    """What it means, where to look first, how to mend it."""
    page = (DOCS / "alarms.md").read_text(encoding="utf-8")
    [section] = re.findall(rf"(?ms)^### {kind}\n(.*?)(?=^###? |\Z)", page)
    assert re.findall(r"(?m)^- \*\*(.+?)\*\*: \S", section) == ["Means", "First look", "Mend"]


# --- connecting --------------------------------------------------------------------------------------------------

PARTS = ["On their side", "On ours", "See that it works", "What usually goes wrong", "Limits"]


def test_every_provider_has_a_page_and_the_index_has_them_all() -> None:
    index = (DOCS / "connecting" / "README.md").read_text(encoding="utf-8")
    pages = {page.stem for page in (DOCS / "connecting").glob("*.md")} - {"README"}
    assert pages == set(discover())
    assert {name for name in pages if f"]({name}.md)" not in index} == set()


@pytest.mark.parametrize("provider", discover())
def test_a_provider_s_page_is_whole(provider: str) -> None:
    """The same parts in the same order; every setting and secret of its file; its example is a good configuration."""
    page = (DOCS / "connecting" / f"{provider}.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^## (.+)$", page) == PARTS
    settings = discover()[provider]
    assert {option for option in settings.options if option not in page} == set()
    secrets = {what.upper() for secrets in settings.secrets for what in secrets} - {"API_KEY"}
    assert {what for what in secrets if f"_{what}`" not in page} == set()
    [example] = blocks(page, "toml")
    for document in (example, re.sub(r"(?m)^# (\w+ = )", r"\1", example)):
        [endpoint] = parse(tomllib.loads(document), "page", {}).endpoints.values()
        assert endpoint.provider == provider
        assert set(endpoint.options) <= set(settings.options)
        assert all(settings.options[name].check(value) is None for name, value in endpoint.options.items())


# --- the picture -------------------------------------------------------------------------------------------------


def test_the_picture_is_small_accessible_and_whole() -> None:
    """Nothing is loaded from elsewhere; it has a title and a description, and knows both themes."""
    content = (DOCS / "flow.svg").read_bytes()
    assert len(content) < 12_000
    root = ElementTree.fromstring(content)
    name = "{http://www.w3.org/2000/svg}"
    labels = {each.get("id") for part in ("title", "desc") for each in root.findall(f"{name}{part}")}
    assert set(root.get("aria-labelledby", "").split()) == labels
    text = content.decode()
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"https?://[^\"']+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<script|href=|@import|url\((?!#)", text)


# --- deploying ---------------------------------------------------------------------------------------------------


def unit(kind: str) -> str:
    [file] = UNITS.glob(f"reservoir-{kind}[.@]*service")
    return file.read_text(encoding="utf-8")


def plain(line: str) -> list[str]:
    """The words of a Procfile's line as they are when no variable is set, on a machine with one core."""
    return shlex.split(re.sub(r"\$\(\(.*\)\)", "1", re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", line)))


@pytest.mark.parametrize("kind", procfile())
def test_a_unit_runs_the_line_of_the_procfile(kind: str) -> None:
    """Under the same name for a port and a number, as nice, and with the secrets that `up` would give it."""
    text = unit(kind)
    [line] = re.findall(r"(?m)^ExecStart=/opt/reservoir/\.venv/bin/(.*)$", text)
    told = line.replace("%%", "%").replace("--port %i", "--port 8000").replace("worker.%i@", "worker@").split()
    wanted = plain(procfile()[kind])
    nice = re.findall(r"(?m)^Nice=(\d+)$", text)
    assert (["nice", "-n", *nice] if nice else []) + told == wanted
    files = set(re.findall(r"(?m)^EnvironmentFile=-?/etc/reservoir/(\w+)\.env$", text))
    granted = GRANTED.get(kind)
    known = {"reservoir"} | {
        file
        for file, variable in (("secret", SECRET), ("database", "DATABASE_URL"))
        if granted is None or variable in granted
    }
    assert files - {kind} == known | ({"endpoints"} if granted is None else set())
    assert re.search(r"(?m)^Restart=always$", text)


def test_the_target_wants_every_unit() -> None:
    wanted = re.findall(r"reservoir-(\w+)[@.]", (UNITS / "reservoir.target").read_text(encoding="utf-8"))
    assert set(wanted) == {*procfile(), "migrate"}


@pytest.mark.skipif(which("systemd-analyze") is None, reason="systemd-analyze is not there; no unit was verified")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """With this project in the place of /opt/reservoir."""
    for file in UNITS.iterdir():
        text = (
            file.read_text(encoding="utf-8")
            .replace("/opt/reservoir/.venv", sys.prefix)
            .replace("/opt/reservoir", str(ROOT))
        )
        (tmp_path / file.name).write_text(text, encoding="utf-8")
    instances = {"web": "8000", "worker": "1"}
    names = [
        file.name.replace("@", f"@{instances.get(file.name.split('-')[-1].split('@')[0], '')}")
        for file in UNITS.iterdir()
    ]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in names)],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        timeout=60,
        check=False,
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "reservoir" in line]) == (0, [])


HAPROXY = which("haproxy") or which("haproxy", path="/usr/sbin:/usr/local/sbin")


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not on the PATH; nothing was proved about its settings")
def test_haproxy_takes_what_the_page_says_of_it(tmp_path: Path) -> None:
    """The page's lines in their places in `deploy/haproxy.cfg`, with a certificate of the test's own."""
    bind, servers = blocks((DOCS / "deploying.md").read_text(encoding="utf-8"), "haproxy")
    certificate = tmp_path / "hooks.pem"
    certificate.write_bytes(self_signed("hooks.example.org"))
    text = (ROOT / "deploy" / "haproxy.cfg").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^resolvers docker\n(?: .*\n)+", "", text)
    text = re.sub(r"(?m)^ *server-template .*$", servers.rstrip(), text)
    text = text.replace("    bind :8080\n", bind.replace("/etc/haproxy/hooks.example.org.pem", str(certificate)))
    assert text.count("bind :443 ssl") == 1
    (tmp_path / "haproxy.cfg").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [str(HAPROXY), "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
