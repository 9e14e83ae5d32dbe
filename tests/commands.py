"""The command line, typed in this process: `reservoir …` and how it ended.

Knows no command, and neither directory nor database: it runs where the test stands, with what the test gives it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import pytest

from console.cli import main


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]
"""Takes the words that are typed behind it."""


def bare_environment() -> dict[str, str]:
    """That of the tests, without anything of ours."""
    return {name: value for name, value in os.environ.items() if not re.match(r"RESERVOIR_|DATABASE_|REDIS_", name)}


def run(capsys: pytest.CaptureFixture[str], /, *words: object, **environment: str) -> Done:
    """`reservoir` with these words; of ours, its environment holds only what is given here."""
    whole = {**bare_environment(), **environment}
    with (
        mock.patch.object(sys, "argv", ["reservoir", *map(str, words)]),
        mock.patch.dict(os.environ, whole, clear=True),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return Done(int(ended.value.code or 0), *capsys.readouterr())
