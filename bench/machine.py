"""Where a run took place: what a reader needs to know to make something of its absolute figures."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from bench.disk import synced
from bench.ground import Ground
from chaos.report import machine

LIBRARIES: Final = ("starlette", "uvicorn", "uvloop", "httptools", "redis", "celery", "kombu", "sqlalchemy", "psycopg")
SYNCS: Final = 100


def facts() -> dict[str, Any]:
    """Of the machine and the libraries; they do not change within a run."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "processor": _processor(),
        "kernel": platform.release(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def facts_of(ground: Ground) -> dict[str, Any]:
    """Of the servers, and of the disk on which they keep their files."""
    return {
        "servers": ground.versions(),
        "file_system": _file_system(ground.folder),
        "sync_ms": round(sync_ms(ground.folder), 3),
        "client_core": ground.client_core,
        "server_core": ground.server_core,
    }


def sync_ms(folder: Path) -> float:
    """The median time that a small write takes until it is on the disk, in milliseconds."""
    return 1000 * median(synced(folder, SYNCS))


def _file_system(folder: Path) -> str:
    """Its type; of the mount that is nearest above the folder."""
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next((mounts[place] for place in (folder, *folder.resolve().parents) if place in mounts), "unknown")


def _processor() -> str:
    """As Linux names it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
