"""The Celery app: broker, queues, limits, what the log may show. Nothing else configures Celery."""

from __future__ import annotations

import logging
import os
from typing import Any, Final

from celery import Celery
from celery.signals import setup_logging
from kombu import Exchange, Queue

from workers.registry import discover

HOUSEKEEPING: Final = "housekeeping"
"""The queue of what belongs to no provider: the sweeper, and deliveries of endpoints that nobody configured."""

SWEEP: Final = "reservoir.sweep"
SWEEP_SECONDS: Final = 2.0
BROKER_PATIENCE: Final = 300


def broker_url(redis_url: str) -> str:
    """A URL of redis-py as kombu spells it: they differ for a Unix socket."""
    if not redis_url.startswith("unix://"):
        return redis_url
    return redis_url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)


app = Celery("reservoir", include=["workers.tasks"])
app.conf.update(
    broker_url=broker_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")),
    broker_transport_options={
        "visibility_timeout": BROKER_PATIENCE,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
    },
    visibility_timeout=BROKER_PATIENCE,
    broker_connection_retry_on_startup=True,
    broker_pool_acquire_timeout=1.0,
    task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0.05, "interval_max": 0.1},
    # One queue per provider: an API that hangs fills its own queue only.
    task_queues=[
        Queue(name, Exchange("reservoir", type="direct"), routing_key=name) for name in (*discover(), HOUSEKEEPING)
    ],
    task_default_queue=HOUSEKEEPING,
    task_create_missing_queues=False,
    # A message is a nudge. Late acknowledgement saves most of them; the sweeper finds the rest.
    task_acks_late=True,
    task_acks_on_failure=True,
    task_acks_on_timeout=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    worker_soft_shutdown_timeout=20,
    worker_enable_soft_shutdown_on_idle=False,
    task_soft_time_limit=45,
    task_time_limit=60,
    worker_max_tasks_per_child=5000,
    worker_max_memory_per_child=300_000,
    task_ignore_result=True,
    worker_send_task_events=True,  # Flower
    task_send_sent_event=False,
    task_serializer="json",
    accept_content=["json"],
    enable_utc=True,
    timezone="UTC",
    beat_scheduler="celery.beat:Scheduler",  # intervals only: nothing to keep on disk between starts
    beat_max_loop_interval=5,
    beat_schedule={
        "sweep": {
            "task": SWEEP,
            "schedule": SWEEP_SECONDS,
            "options": {"queue": HOUSEKEEPING, "expires": 5 * SWEEP_SECONDS},
        }
    },
)


@setup_logging.connect
def log_to_stderr(loglevel: int | str | None = None, **_: Any) -> None:
    """One line a record. HTTP clients log whole URLs, and some providers want their key in the URL."""
    logging.basicConfig(
        level=loglevel or logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("celery.worker.strategy", "celery.app.trace", "celery.beat"):
        logging.getLogger(name).setLevel(logging.WARNING)  # our own lines say what became of a delivery
