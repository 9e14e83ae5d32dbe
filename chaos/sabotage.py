"""Parts taken out of the system, to see that the ledger notices: for tests only, and nothing of it in production code.

spool          the receiver has nowhere to put a request while Redis is away
sweeper        nobody nudges again what was left behind
commit-first   Lockme is told that a message is safe before it is; loaded into the workers through a
               `sitecustomize.py` in the folder of the run
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from time import sleep
from types import ModuleType
from typing import Any, Final

Change = tuple[Mapping[str, int], dict[str, str]]
"""How many of which process, and what more stands in the environment."""


def _without_spool(place: Path) -> Change:
    return {}, {"RESERVOIR_SPOOL_DIR": "off"}


def _without_sweeper(place: Path) -> Change:
    return {"beat": 0}, {}


def _without_commit_first(place: Path) -> Change:
    folder = place / "sabotage"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("from chaos.sabotage import install\n\ninstall()\n")
    project = Path(__file__).resolve().parent.parent
    return {}, {"PYTHONPATH": f"{folder}:{project}"}


WITHOUT: Final[Mapping[str, Callable[[Path], Change]]] = {
    "spool": _without_spool,
    "sweeper": _without_sweeper,
    "commit-first": _without_commit_first,
}
DAWDLES: Final = 1.5
"""Seconds."""

# --- inside a worker -------------------------------------------------------------------------------------------


def install() -> None:
    """Each of these modules is changed as soon as somebody imports it."""
    sys.meta_path.insert(0, _Spoils({"workers.pipeline": acknowledge_first, "workers.store": hold_briefly}))


class _Spoils(MetaPathFinder):
    """Finds a module as everybody does, and has it changed once it is there."""

    def __init__(self, changes: Mapping[str, Callable[[Any], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._changes:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Afterwards(spec.loader, self._changes[name])
        return spec


class _Afterwards(Loader):
    def __init__(self, loader: Loader, change: Callable[[Any], None]) -> None:
        self._loader = loader
        self._change = change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._change(module)


def acknowledge_first(pipeline: Any) -> None:
    """Tells the provider as soon as the content is read, before anything of it is written, and dawdles between the
    two: a run of seconds shall meet the moment that a run of months would."""
    passage = pipeline._Passage
    read = passage.found

    def too_early(self: Any, *given: Any, **more: Any) -> Any:
        found = read(self, *given, **more)
        if found.safe and self.farewell is not None:
            self.ask(self.farewell)
            sleep(DAWDLES)
        return found

    passage.found = too_early


def hold_briefly(store: Any) -> None:
    """A row that a worker let fall comes back soon: the harm is done, and nobody need wait half a minute to see it."""
    store.LEASE = timedelta(seconds=4)
