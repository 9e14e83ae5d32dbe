"""What every process says: a line is an event with fields, as JSON or, on a terminal, in colours.

    log.warning("refuse", endpoint="desk", reason="too-large")

The events and fields are listed in docs/operating.md. No line holds a secret or anything of a guest: our own fields are
names, ids, numbers and reasons; what a library says of its arguments is not shown, and of an exception only the class
and the place. Knows no process of ours, and nothing of what they do.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import PurePath
from types import FrameType, TracebackType
from typing import Any, Final, TextIO
from uuid import UUID

from schemas.endpoints import ConfigError


@contextmanager
def _unseen(name: str) -> Iterator[None]:
    """While it lasts, a module that is not loaded yet cannot be."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


with _unseen("rich"):  # for tracebacks with all their values, which nobody shall see; 4 MB in every receiver
    import structlog
    from structlog.contextvars import bound_contextvars, merge_contextvars
    from structlog.dev import ConsoleRenderer
    from structlog.processors import JSONRenderer, TimeStamper
    from structlog.stdlib import BoundLogger, ProcessorFormatter, add_log_level, add_logger_name, filter_by_level
    from structlog.typing import EventDict, Processor, WrappedLogger

FORMAT: Final = "RESERVOIR_LOG_FORMAT"
"""`json` or `console`; where it is not set, a terminal gets the latter."""
LEVEL: Final = "RESERVOIR_LOG_LEVEL"
PROCESS: Final = "RESERVOIR_PROCESS"
"""The name that `reservoir up` gave this process: `web.1`."""

OURS: Final = "reservoir"
PARTS: Final = frozenset({"bench", "chaos", "console", "ingest", "schemas", "simulators", "workers"})
"""Whose frames are told where something was raised."""
HEAD: Final = ("timestamp", "level", "logger", "process", "event", "delivery", "endpoint")
QUIET: Final = {
    "httpx": logging.CRITICAL,
    "httpcore": logging.CRITICAL,
    "alembic": logging.WARNING,
    "psycopg": logging.ERROR,
}
"""Loggers that tell of every request and every step; what came of it is told by us."""
HIDDEN: Final = "…"
MOST_PLACES: Final = 5

log: Final[BoundLogger] = structlog.wrap_logger(
    logging.getLogger(OURS),
    processors=[filter_by_level, merge_contextvars, ProcessorFormatter.wrap_for_formatter],
    wrapper_class=BoundLogger,
    cache_logger_on_first_use=True,
)
"""What all of our lines go through."""

about = bound_contextvars
"""`with about(delivery=…, endpoint=…):` each line in it has these fields too; a thread has its own."""


def configure(process: str, level: int | str = "INFO", *, crashes: bool = True) -> None:
    """Has all that this process says come out on stderr, a line an event. A setting that makes no sense ends it.

    `crashes`: also warnings and what nobody caught, where Python would print texts that may quote data.
    """
    try:
        as_json, least = is_json(), _level(os.environ.get(LEVEL) or level)
    except ConfigError as error:
        sys.exit(f"reservoir: {error}")
    root, handler = logging.getLogger(), _ToStderr()
    handler.setFormatter(formatter(os.environ.get(PROCESS) or process, as_json=as_json))
    root.handlers = [other for other in root.handlers if not isinstance(other, _ToStderr)] + [handler]
    root.setLevel(least)
    # uvicorn brings handlers of its own. Its few words about start and end come at every level: `up` waits for them.
    logging.getLogger("uvicorn").handlers, logging.getLogger("uvicorn").propagate = [], True
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line shows them
    for name, least_of_it in QUIET.items():
        logging.getLogger(name).setLevel(least_of_it)
    if crashes:
        logging.captureWarnings(True)
        warnings.formatwarning = _warning
        sys.excepthook, threading.excepthook, sys.unraisablehook = _crash, _crash_of_thread, _crash_of_nobody


def is_json(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether lines are for a program. Raises ConfigError."""
    wish = environment.get(FORMAT) or ("console" if sys.stderr.isatty() else "json")
    if wish not in ("json", "console"):
        raise ConfigError(FORMAT, f"{wish!r} is neither json nor console; leave it out, and a terminal gets console")
    return wish == "json"


def formatter(process: str, *, as_json: bool) -> logging.Formatter:
    """How a record becomes a line: ours and those of libraries in one shape."""
    colours = not os.environ.get("NO_COLOR")
    look: list[Processor] = [JSONRenderer(ensure_ascii=False, default=str)]
    if not as_json:
        look = [_for_eyes, ConsoleRenderer(colors=colours, pad_event_to=0, sort_keys=False)]

    def named(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("process", process)
        return event

    return _Lines(
        foreign_pre_chain=[_foreign],
        use_get_message=False,
        pass_foreign_args=True,
        processors=[
            _trouble,
            _plain,
            named,
            add_log_level,
            add_logger_name,
            TimeStamper(fmt="iso", utc=True),
            ProcessorFormatter.remove_processors_meta,
            _in_order,
            *look,
        ],
    )


class _Lines(ProcessorFormatter):
    """A line of ours brings its fields along, and needs no copy of its record: that was a third of what it cost."""

    def format(self, record: logging.LogRecord) -> str:
        logger, name = getattr(record, "_logger", None), getattr(record, "_name", "")
        if logger is None or not isinstance(record.msg, dict):
            return super().format(record)
        line: Any = {**record.msg, "_record": record, "_from_structlog": True}
        for processor in self.processors:
            line = processor(logger, name, line)
        return str(line)


class _ToStderr(logging.StreamHandler[TextIO]):
    """Wherever stderr leads now."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _level(wish: int | str) -> int:
    """Raises ConfigError."""
    if isinstance(wish, int):
        return wish
    known = {name.lower(): number for name, number in logging.getLevelNamesMapping().items() if number}
    if wish.lower() not in known:
        raise ConfigError(LEVEL, f"{wish!r} is no level; debug, info, warning and error are")
    return known[wish.lower()]


# --- what may be seen --------------------------------------------------------------------------------------------


def _foreign(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A library's line, without what it speaks of.

    Whoever calls a logger writes the text and hands over the data as arguments: URLs with passwords, requests, rows,
    exceptions that quote them. So the text stays, and of the arguments what cannot be a secret. A text without
    arguments may have been put together from data, and is shown where the code that logs has it word for word.
    """
    record, arguments = event["_record"], event.pop("positional_args")
    text: object = record.msg
    if isinstance(text, str) and (arguments or record.name == _WARNINGS or _is_literal(text, record)):
        said = _filled(text, arguments)
    else:
        said = f"{kind(text) if isinstance(text, BaseException) else HIDDEN} ({record.filename}:{record.lineno})"
    event["event"] = " ".join(said.split())
    return event


def _filled(text: str, arguments: Any) -> str:
    if not arguments:
        return text
    try:
        if isinstance(arguments, Mapping):
            return text % _Words({name: _harmless(value) for name, value in arguments.items()})
        return text % tuple(map(_harmless, arguments))
    except (TypeError, ValueError, KeyError):  # a number was wanted, and it is hidden
        return text


def _harmless(argument: object) -> object:
    """A number, the class of an exception, the id of a delivery; of all else nothing."""
    if argument is None or isinstance(argument, bool | int | float):
        return argument
    if isinstance(argument, BaseException):
        return _Word(kind(argument))
    return _Word(str(argument) if _is_id(argument) else HIDDEN)


class _Word(str):
    """The same for `%r` as for `%s`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _Words(dict[str, object]):
    """Only who names a value gets it: all of them together would bring their names along, which may be data too."""

    def __repr__(self) -> str:
        return HIDDEN


def _is_id(argument: object) -> bool:
    """Whether it is a time-ordered UUID, as deliveries and the tasks named after them have; keys are random ones."""
    try:
        return UUID(str(argument)).version == 7 if isinstance(argument, str | UUID) else False
    except ValueError:
        return False


def _is_literal(text: str, record: logging.LogRecord) -> bool:
    """Whether the function that logs, or its module, holds this text."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and (frame.f_code.co_filename, frame.f_lineno) != (record.pathname, record.lineno):
        frame = frame.f_back
    return frame is not None and _holds(text, (*frame.f_code.co_consts, *frame.f_globals.values()))


def _holds(text: str, values: Iterable[object]) -> bool:
    return any(type(value) is str and value == text for value in values)


def _trouble(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """An exception as its classes, from the last one to its cause, and the places in our own code that it went through:
    its text may quote what it stumbled over."""
    event.pop("stack_info", None)
    error = _error(event.pop("exc_info", None))
    if error is not None:
        event["raised"] = " < ".join(map(kind, _chain(error)))
        if error.__traceback__ is not None:
            event["at"] = " < ".join(places(error.__traceback__))
    return event


def _error(given: object) -> BaseException | None:
    found = sys.exc_info() if given is True else given
    if isinstance(found, tuple):
        found = found[1]
    found = getattr(found, "exc", found)  # what comes out of a child of Celery's is wrapped
    return found if isinstance(found, BaseException) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(MOST_PLACES):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def kind(error: BaseException) -> str:
    """The class of an exception, with its module where that is not Python itself."""
    name, module = type(error).__qualname__, type(error).__module__
    return name if module == "builtins" else f"{module}.{name}"


def places(trace: TracebackType | None) -> list[str]:
    """`file.py:12`, the innermost first: those of our own code, or the last one of all."""
    steps = [(frame, line) for frame, line in traceback.walk_tb(trace)][::-1]
    ours = [step for step in steps if str(step[0].f_globals.get("__name__", "")).partition(".")[0] in PARTS]
    return [f"{PurePath(frame.f_code.co_filename).name}:{line}" for frame, line in (ours or steps[:1])[:MOST_PLACES]]


def _plain(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Fields as they are printed: an object that is none of these would print whatever it holds."""
    return {
        name: value if type(value) in _PLAIN or name[0] == "_" else _printed(value) for name, value in event.items()
    }


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def _printed(value: object) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case BaseException():
            return kind(value)
        case datetime() | date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID() | PurePath():
            return str(value)
        case list() | tuple() | set() | frozenset():
            return [_printed(each) for each in value]
        case Mapping():
            return {str(name): _printed(each) for name, each in value.items()}
    return type(value).__name__


# --- how it looks ------------------------------------------------------------------------------------------------


def _in_order(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {**{name: event[name] for name in HEAD if name in event}, **event}


def _for_eyes(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Whoever looks at a terminal knows the day and the process, and that it is ours."""
    event["timestamp"] = event["timestamp"][11:19] + "Z"
    del event["process"]
    if event["logger"] == OURS:
        del event["logger"]
    return event


# --- what nobody caught ------------------------------------------------------------------------------------------

_WARNINGS: Final = "py.warnings"


def _warning(message: object, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    return f"{category.__name__} at {PurePath(filename).name}:{lineno}"


def _crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("crash", exc_info=error.with_traceback(trace))


def _crash_of_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        log.critical("crash", thread=arguments.thread and arguments.thread.name, exc_info=arguments.exc_value)


def _crash_of_nobody(unraisable: sys.UnraisableHookArgs) -> None:
    if unraisable.exc_value is not None:
        log.error("crash", exc_info=unraisable.exc_value)
