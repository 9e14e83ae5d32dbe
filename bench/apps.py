"""The Starlette apps that Reservoir's receiver is measured against. Each is served like it, and knows nothing of it.

They take the same URL, so that all are asked the same, byte for byte.
"""

from __future__ import annotations

from celery import Celery
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PATH = "/hooks/{endpoint}/{token}"
TASK = "bench.process"


def bare() -> Starlette:
    """Reads the body, keeps nothing, answers: what Starlette and uvicorn can do at most."""

    async def hook(request: Request) -> Response:
        await request.body()
        return Response()

    return Starlette(routes=[Route(PATH, hook, methods=["POST"])])


def send_task() -> Starlette:
    """The usual one: the body becomes the argument of a Celery task, and the event loop waits for it."""
    celery = _celery()

    async def hook(request: Request) -> Response:
        body = await request.body()
        celery.send_task(TASK, args=[body.decode()])
        return Response()

    return Starlette(routes=[Route(PATH, hook, methods=["POST"])])


def send_task_in_threads() -> Starlette:
    """The same by somebody who knows that `send_task` blocks: several wait for Redis at once."""
    celery = _celery()

    async def hook(request: Request) -> Response:
        body = await request.body()
        await run_in_threadpool(celery.send_task, TASK, args=[body.decode()])
        return Response()

    return Starlette(routes=[Route(PATH, hook, methods=["POST"])])


def _celery() -> Celery:
    """The broker comes from `CELERY_BROKER_URL`, which Celery reads by itself; everything else is as Celery has it."""
    return Celery("usual", set_as_current=False)
