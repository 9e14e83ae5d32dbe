"""Who may import whom: the contracts of pyproject.toml hold, each of them can fail, and the receiver is light."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
PACKAGES: list[str] = PYPROJECT["root_packages"]
CONTRACTS: dict[str, str] = {contract["id"]: contract["name"] for contract in PYPROJECT["contracts"]}

BREACHES = [
    ("parts", "ingest/door.py", "import workers.errors"),
    ("parts", "simulators/venue.py", "import workers.errors"),
    ("parts", "workers/provider.py", "import ingest.door"),
    ("parts", "console/show.py", "import chaos.books"),
    ("parts", "chaos/books.py", "import bench.figures"),
    ("no-cycles", "ingest/nudge.py", "import ingest.inbox"),
    ("console", "console/show.py", "import workers.tasks"),
    ("receiver-is-light", "ingest/door.py", "import schemas.booking"),
    ("receiver-is-light", "schemas/delivery.py", "import sqlalchemy"),
    ("receiver-and-celery", "ingest/inbox.py", "import celery"),
    ("receiver-and-http", "ingest/inbox.py", "import starlette.requests"),
    ("spool", "ingest/segment.py", "import redis"),
    ("workers", "workers/fold.py", "import workers.store"),
    ("workers", "workers/brand_new.py", ""),
    ("providers", "workers/providers/timekit.py", "import workers.providers.lockme"),
    ("providers-ask-for-little", "workers/providers/timekit.py", "import workers.job"),
    ("pure", "workers/pipeline.py", "import httpx"),
    ("store", "workers/bookings.py", "import redis"),
    ("calls", "workers/tokens.py", "import celery"),
    ("circuit", "workers/slots.py", "import httpx"),
    ("one-way-out", "workers/sweep.py", "import httpx"),
    ("simulators", "simulators/venue.py", "import schemas.booking"),
    ("schemas", "schemas/booking.py", "import pydantic"),
    ("console-web", "console/web/words.py", "import console.web.app"),
    ("console-decides", "console/web/filters.py", "import sqlalchemy"),
]
"""Contract, file, and the line that breaks it."""


LINTER = """
import contextlib, io, json, sys
from importlinter.cli import lint_imports_command
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            lint_imports_command(json.loads(line))
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, said.getvalue()]), flush=True)
"""
"""Import-linter, line by line of its words: most of what a run of its own costs is the start."""

Linter = Callable[..., tuple[int, str]]
"""Takes the contracts to check, all where none is named; exit code and output."""


@contextmanager
def linter(where: Path) -> Iterator[Linter]:
    """Import-linter over the packages in a folder, which it reads anew each time. It has loaded none of them."""
    command = [sys.executable, "-c", LINTER]
    with subprocess.Popen(command, cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def lint(*contracts: str) -> tuple[int, str]:
            words = [word for contract in contracts for word in ("--contract", contract)]
            print(json.dumps(["--no-cache", "--no-logo", *words]), file=asked, flush=True)
            code, said = json.loads(answers.readline())
            return code, " ".join(said.split())

        yield lint


def test_the_contracts_hold() -> None:
    """The same check as in `make check`."""
    with linter(PROJECT) as lint:
        code, said = lint()
    assert code == 0, said
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in said


def test_every_contract_is_broken_once() -> None:
    """By a row of the table: a contract that nobody has seen fail may say nothing."""
    assert {contract for contract, _, _ in BREACHES} == set(CONTRACTS)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and the contracts, to be broken."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(PROJECT / "pyproject.toml", folder)
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def lint(copy: Path) -> Iterator[Linter]:
    """Looks at the copy."""
    with linter(copy) as found:
        yield found


@pytest.mark.parametrize(("contract", "file", "line"), BREACHES, ids=lambda word: word)
def test_a_breach_is_seen(contract: str, file: str, line: str, copy: Path, lint: Linter) -> None:
    """One line in one file is enough."""
    broken = copy / file
    before = broken.read_text(encoding="utf-8") if broken.exists() else None
    broken.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        code, said = lint(contract)
    finally:
        broken.unlink()
        if before is not None:
            broken.write_text(before, encoding="utf-8")
    assert code == 1, said
    assert f"{CONTRACTS[contract]} BROKEN" in said
    assert "Contracts: 0 kept, 1 broken." in said


# --- what a fresh interpreter has loaded -----------------------------------------------------------------------


def loaded_by(statements: str) -> set[str]:
    """The packages in `sys.modules` after these statements; static checks cannot see that."""
    run = f"import json, sys\n{statements}\nprint(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", run], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True
    )
    names: list[str] = json.loads(ended.stdout)
    # redis-py looks whether `cryptography` is installed; what would be work is below `hazmat`.
    idle = "cryptography.hazmat" not in names
    return {name.partition(".")[0] for name in names} - ({"cryptography"} if idle else set())


RECEIVER = """
import ingest.app
from ingest.settings import Settings
from schemas.endpoints import parse
config = parse({"endpoints": {"studio": {"provider": "reservekit"}}}, "reservoir.toml", {})
ingest.app.build(Settings(redis_url="redis://127.0.0.1:1", secret="0123456789abcdef", config=config))
"""


@pytest.mark.parametrize("statements", ["import ingest.app", RECEIVER], ids=["imported", "built"])
def test_the_receiver_loads_nothing_that_reads_or_stores(statements: str) -> None:
    """Neither at its import nor when it is put together."""
    heavy = {"sqlalchemy", "psycopg", "pydantic", "httpx", "defusedxml", "alembic", "cryptography"}
    ours = {"workers", "simulators", "console"}
    assert loaded_by(statements) & (heavy | ours) == set()


def test_our_own_words_load_the_standard_library_only() -> None:
    """So everybody can afford them."""
    found = loaded_by("import schemas.booking, schemas.delivery, schemas.endpoints") - loaded_by("")
    foreign = {name for name in found - sys.stdlib_module_names if not name.startswith("_sysconfigdata")}
    assert foreign == {"schemas"}


def test_what_decides_loads_nothing_that_talks_to_the_world() -> None:
    """A delivery can be understood without a database, a queue or a network."""
    found = loaded_by("import workers.pipeline, workers.registry; workers.registry.discover()")
    assert found & {"sqlalchemy", "psycopg", "celery", "kombu", "redis", "httpx", "starlette", "cryptography"} == set()
