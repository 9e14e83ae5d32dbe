"""What the processes say: one shape for every line, and neither a secret nor a guest in any.

A whole installation's log is read in test_acceptance.py; here are the rules that it stands on.
"""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.processes import Output, Process
from schemas.delivery import new_id
from schemas.logs import FORMAT, LEVEL, about, formatter, is_json, log
from tests.lines import AGREED, ANYWHERE, Line, documented, read
from tests.serving import eventually

PROJECT = Path(__file__).resolve().parent.parent
SECRET = "postgresql://reservoir:hunter2@db/reservoir"
BOUND = {"deliveries", "first", "provider", "channel", "notice"}
"""Fields that `about` gives to lines in several places."""


class Lines(logging.Handler):
    """What a process would print."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self.setFormatter(formatter("web.1", as_json=as_json))
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    @property
    def only(self) -> Line:
        """The one line there is, read."""
        (text,) = self.texts
        assert "\n" not in text
        line: Line = json.loads(text)
        return line


Listen = Callable[..., Lines]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Hears a logger as a process of ours does."""
    heard: list[tuple[logging.Logger, Lines]] = []

    def start(name: str, *, as_json: bool = True) -> Lines:
        logger, lines = logging.getLogger(name), Lines(as_json=as_json)
        logger.addHandler(lines)
        logger.setLevel(logging.DEBUG)
        heard.append((logger, lines))
        return lines

    yield start
    for logger, lines in heard:
        logger.removeHandler(lines)
        logger.setLevel(logging.NOTSET)


# --- our own lines -----------------------------------------------------------------------------------------------


def test_a_line_is_an_event_with_its_fields_after_the_agreed_ones(listen: Listen) -> None:
    lines, identity = listen("reservoir"), new_id()
    log.warning("circuit", state="away", seconds=timedelta(seconds=5), endpoint="desk", delivery=identity)
    line = lines.only
    assert [*line] == ["timestamp", "level", "logger", "process", "event", "delivery", "endpoint", "state", "seconds"]
    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo == UTC
    assert line == {
        "level": "warning",
        "logger": "reservoir",
        "process": "web.1",
        "event": "circuit",
        "delivery": str(identity),
        "endpoint": "desk",
        "state": "away",
        "seconds": 5.0,
    }


def test_what_is_said_about_a_delivery_names_it(listen: Listen) -> None:
    lines = listen("reservoir")
    with about(delivery="d", endpoint="desk"):
        log.info("circuit", state="closed")
    log.info("nudged", what="inbox")
    within, after = map(json.loads, lines.texts)
    assert (within["delivery"], within["endpoint"]) == ("d", "desk")
    assert "delivery" not in after


def test_an_exception_is_its_class_and_place_and_never_its_text(listen: Listen) -> None:
    """Those it came from as well; libraries' frames are left out where there are ours."""
    lines = listen("reservoir")
    try:
        try:
            uuid.UUID(SECRET)
        except ValueError as error:
            raise PermissionError(SECRET) from error
    except PermissionError:
        log.error("page-failed", path="/", exc_info=True, stack_info=SECRET)
    line = lines.only
    assert line["raised"] == "PermissionError < ValueError"
    assert line["at"].startswith("test_logs.py:")
    assert SECRET not in str(line)


@given(
    st.recursive(
        st.one_of(st.binary(), st.builds(ValueError, st.text()), st.builds(object), st.complex_numbers()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    )
)
def test_a_field_that_is_no_word_and_no_number_is_told_by_its_class(value: Any) -> None:
    """A body, an exception, an object of ours or of a library: whatever it would print stays where it is."""
    lines = Lines(as_json=True)
    logger = logging.getLogger("reservoir")
    logger.addHandler(lines)
    try:
        log.error("page-failed", path=value)
    finally:
        logger.removeHandler(lines)
    assert leaves(lines.only["path"]) <= {"bytes", "ValueError", "object", "complex"}


def leaves(value: object) -> set[object]:
    """What stands in it, at any depth."""
    match value:
        case list():
            return {leaf for each in value for leaf in leaves(each)}
        case dict():
            return {leaf for each in value.values() for leaf in leaves(each)}
    return {value}


def test_on_a_terminal_it_is_short_and_in_colours(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day, no process (its name stands before the line), and `logger` only where it is not ours."""
    monkeypatch.setenv("NO_COLOR", "1")
    plain = listen("reservoir", as_json=False)
    log.warning("refuse", endpoint="desk", reason="too-large")
    (text,) = plain.texts
    assert text[8:] == "Z [warning  ] refuse endpoint=desk reason=too-large"
    monkeypatch.delenv("NO_COLOR")
    coloured = listen("reservoir", as_json=False)
    log.warning("refuse", endpoint="desk", reason="too-large")
    assert "\x1b[1mrefuse\x1b[0m" in coloured.texts[0]


# --- lines of libraries ------------------------------------------------------------------------------------------

LIBRARY = "some.library"


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("Connected to %s", (SECRET,), "Connected to …"),
        ("Uvicorn running on %s://%s:%d", ("http", "::", 8000), "Uvicorn running on …://…:8000"),
        ("took %.1f s, %r left, %s", (1.25, None, True), "took 1.2 s, None left, True"),
        ("Error: %r\n  %s", (ValueError(SECRET), SECRET), "Error: ValueError …"),
        ("Task %(name)s raised: %(exc)s", ({"name": SECRET, "exc": KeyError(SECRET)},), "Task … raised: KeyError"),
        ("a %d that is none", (SECRET,), "a %d that is none"),
        ("one %s", (SECRET, SECRET), "one %s"),
        ("all of %s", ({SECRET: SECRET},), "all of …"),
        ("key %s", (uuid.UUID(int=7 << 76, version=4),), "key …"),
        ("%s and %r", (b"body", {"guest": SECRET}), "… and …"),
    ],
)
def test_of_a_librarys_arguments_nothing_is_shown_that_may_be_secret(
    text: str, arguments: tuple[Any, ...], said: str
) -> None:
    lines = Lines(as_json=True)
    lines.handle(logging.LogRecord(LIBRARY, logging.ERROR, __file__, 1, text, arguments, None))
    assert (lines.only["event"], lines.only["logger"]) == (said, LIBRARY)


def test_the_delivery_that_a_library_speaks_of_is_named(listen: Listen) -> None:
    lines, identity = listen(LIBRARY), new_id()
    logging.getLogger(LIBRARY).error("Task %s[%s] was lost: %r", "reservoir.process", str(identity), identity)
    assert lines.only["event"] == f"Task …[{identity}] was lost: {identity}"


WORD = st.text(st.characters(codec="ascii", categories=["Lu"]), min_size=4, max_size=12).map("Q{}Q".format)
"""In no text of the test itself."""


class Quoting:
    """An object that tells what it holds, as requests and rows do."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __repr__(self) -> str:
        return f"<{self.word}>"


KINDS: list[Callable[[str], Any]] = [
    str, str.encode, ValueError, Quoting, lambda word: [word], lambda word: {word: word}, lambda word: (word, 1), Path
]  # fmt: skip


@given(WORD, st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), st.sampled_from(["%s", "%r", "%a", "%20s"]))
def test_no_argument_of_any_kind_shows_its_words(word: str, kinds: list[Callable[[str], Any]], spelled: str) -> None:
    lines = Lines(as_json=True)
    arguments = [made(word) for made in kinds]
    text = " ".join(["told:", *[spelled] * len(arguments)])
    error = LookupError(word)
    found = (LookupError, error, None)
    lines.handle(logging.LogRecord(LIBRARY, logging.ERROR, __file__, 1, text, tuple(arguments), found))
    assert word not in lines.texts[0]
    assert lines.only["event"].startswith("told: ")


def test_a_text_that_was_put_together_is_not_shown(listen: Listen) -> None:
    """What stands in the code is the library's; what an f-string made of it may hold anything."""
    lines = listen(LIBRARY)
    logger = logging.getLogger(LIBRARY)
    logger.info("Application startup complete.")
    logger.info(CONSTANT)
    logger.error(f"cannot connect to {SECRET}")
    logger.error(ConnectionError(SECRET))
    fixed, constant, *hidden = [json.loads(text)["event"] for text in lines.texts]
    assert (fixed, constant) == ("Application startup complete.", CONSTANT)
    assert hidden[0].startswith("… (test_logs.py:")
    assert hidden[1].startswith("ConnectionError (test_logs.py:")


CONSTANT = "a text of the module's own"


# --- a process ---------------------------------------------------------------------------------------------------

CRASHES = f"""
import threading, warnings, sys
from schemas.logs import configure, log
configure("web")
log.info("up", text="begins")
warnings.warn({SECRET!r})
def stumble(): raise ValueError({SECRET!r})
thread = threading.Thread(target=stumble, name="spool"); thread.start(); thread.join()
class Late:
    def __del__(self): stumble()
Late()
stumble()
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env={"PYTHONPATH": str(PROJECT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_nobody_caught_is_a_line_too() -> None:
    """In the main thread, in another one, where nothing can be raised; and warnings."""
    ended = run(CRASHES)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert SECRET not in ended.stderr
    lines = read(ended.stderr)
    assert all(line.keys() >= AGREED for line in lines)
    assert [line["event"] for line in lines] == ["up", "UserWarning at <string>:6", "crash", "crash", "crash"]
    assert {line["raised"] for line in lines[2:]} == {"ValueError"}
    assert lines[2]["thread"] == "spool"


def test_the_name_that_up_gave_and_the_level_that_is_wished_count() -> None:
    code = "from schemas.logs import configure, log; configure('worker'); log.info('a'); log.warning('b')"
    (line,) = read(run(code, RESERVOIR_PROCESS="worker.2", RESERVOIR_LOG_LEVEL="Warning").stderr)
    assert (line["process"], line["event"]) == ("worker.2", "b")


@pytest.mark.parametrize(
    ("name", "wish", "says"),
    [(FORMAT, "yaml", "'yaml' is neither json nor console"), (LEVEL, "loud", "'loud' is no level")],
)
def test_a_wish_that_makes_no_sense_ends_the_process_with_one_line(name: str, wish: str, says: str) -> None:
    ended = run("from schemas.logs import configure; configure('web')", **{name: wish})
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"reservoir: {name}: {says}")
    assert ended.stderr.count("\n") == 1


def test_a_wish_counts_more_than_where_the_lines_go() -> None:
    """pytest's stderr is no terminal."""
    assert (is_json({}), is_json({FORMAT: "console"}), is_json({FORMAT: "json"})) == (True, False, True)


def test_the_receiver_pays_little_for_it() -> None:
    """structlog would load rich for tracebacks that nobody may see, and a receiver would weigh 4 MB more."""
    code = "import sys, ingest.app; print('structlog' in sys.modules, 'rich' in sys.modules); import rich.console"
    ended = run(code)
    assert (ended.stdout, ended.stderr) == ("True False\n", "")


PRINTS = """import sys; print('{"event": "whole", "process": "web"}'); print('no line of the log'); print()"""


def test_up_passes_lines_on_and_wraps_what_is_none(capfd: pytest.CaptureFixture[str], listen: Listen) -> None:
    said = listen("reservoir")
    output = Output(["web"], as_json=True)
    process = Process(
        name="web",
        kind="web",
        command=f'{sys.executable} -c "{PRINTS.replace(chr(34), chr(92) + chr(34))}"',
        environment={},
        output=output,
    )
    process.start()
    process.popen.wait(30)
    assert eventually(lambda: said.texts)
    assert '{"event": "whole", "process": "web"}' in capfd.readouterr().err.splitlines()
    assert (said.only["event"], said.only["process"], said.only["text"]) == ("printed", "web", "no line of the log")


# --- the vocabulary ----------------------------------------------------------------------------------------------


def logging_calls() -> Iterator[tuple[str, int, ast.Call]]:
    """Every `log.…(…)` in what runs."""
    for folder in ("ingest", "workers", "console", "schemas"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _is_log(node.func):
                    yield path.name, node.lineno, node


def _is_log(called: ast.expr) -> bool:
    if isinstance(called, ast.IfExp):
        return _is_log(called.body)
    levels = ("debug", "info", "warning", "error", "critical")
    return isinstance(called, ast.Attribute) and called.attr in levels and ast.unparse(called.value) == "log"


def test_every_event_and_every_field_is_documented() -> None:
    """And no event is documented that nobody logs."""
    known, seen = documented(), set[str]()
    for file, line, call in logging_calls():
        (event,) = [one.value for one in call.args if isinstance(one, ast.Constant)]
        assert isinstance(event, str), (file, line)
        assert event in known, (file, line, event)
        fields = {one.arg for one in call.keywords if one.arg} - {"exc_info", "process"}
        assert fields <= known[event] | ANYWHERE | BOUND, (file, line, event)
        seen.add(event)
    assert seen == set(known)
