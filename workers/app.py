"""The Celery app: broker, queues, limits, what the log may show. Nothing else configures Celery."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final

from celery import Celery
from celery.signals import setup_logging
from kombu import Exchange, Queue

from schemas import logs
from workers.broker import Amqp
from workers.registry import discover

HOUSEKEEPING: Final = "housekeeping"
"""The queue of deliveries that belong to no provider: their endpoint is not configured (any more)."""
SWEEPS: Final = "sweeps"
"""The queue of the sweeper: whatever waits in the others, it is never behind more than one message of each."""

SWEEP: Final = "reservoir.sweep"
SWEEP_SECONDS: Final = 2.0

REDIS_URL: Final = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")


def broker_url(redis_url: str) -> str:
    """A URL of redis-py as kombu spells it: they differ for a Unix socket."""
    if not redis_url.startswith("unix://"):
        return redis_url
    return redis_url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)


app = Celery("reservoir", amqp=Amqp, include=["workers.tasks", "workers.watch"])
app.conf.update(
    broker_url=broker_url(REDIS_URL),
    broker_transport_options={
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
    },
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    # Redis may answer with an error, full or read-only: the worker connects anew and goes on.
    broker_channel_error_retry=True,
    broker_pool_acquire_timeout=1.0,
    task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0.05, "interval_max": 0.1},
    # One queue per provider: an API that hangs fills its own queue only.
    task_queues=[
        Queue(name, Exchange("reservoir", type="direct"), routing_key=name)
        for name in (*discover(), HOUSEKEEPING, SWEEPS)
    ],
    task_default_queue=HOUSEKEEPING,
    task_create_missing_queues=False,
    # A message is a nudge: a worker that ends gives back what it has not begun, and the sweeper finds the rest.
    task_acks_late=True,
    task_acks_on_failure=True,
    task_acks_on_timeout=True,
    worker_prefetch_multiplier=1,
    # A task does not need its message any more: what it does is kept in PostgreSQL, and done twice it does no harm.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_enable_prefetch_count_reduction=False,
    worker_soft_shutdown_timeout=20,
    worker_enable_soft_shutdown_on_idle=False,
    task_soft_time_limit=45,
    task_time_limit=60,
    worker_max_tasks_per_child=5000,
    worker_max_memory_per_child=300_000,
    task_ignore_result=True,
    worker_send_task_events=True,  # Flower
    worker_consumer="workers.consumer:Consumer",
    worker_pool="workers.pool:Pool",
    task_send_sent_event=False,
    task_serializer="json",
    accept_content=["json"],
    enable_utc=True,
    timezone="UTC",
    beat_scheduler="workers.beat:Beat",
    beat_max_loop_interval=5,
    beat_schedule={
        "sweep": {
            "task": SWEEP,
            "schedule": SWEEP_SECONDS,
            "options": {"queue": SWEEPS, "expires": 5 * SWEEP_SECONDS},
        }
    },
)


@setup_logging.connect
def set_up_log(loglevel: int | str | None = None, **_: Any) -> None:
    """As everywhere; Celery's own words about each task are left out, our lines say what became of a delivery."""
    logs.configure("beat" if "beat" in sys.argv else "worker", loglevel or "INFO")
    for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("py.warnings").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Celery warns of a setting that we chose, each time that it connects anew."""
    return not record.getMessage().startswith("CPendingDeprecationWarning at consumer.py:")
