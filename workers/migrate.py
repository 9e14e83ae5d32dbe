"""Brings a database to the newest schema. Knows nothing of what is in it."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from workers.database import engine

HERE = Path(__file__).parent / "migrations"
LOCK = 0x7265736572766F69  # "reservoi": two processes that migrate at once take turns


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(HERE))
    config.attributes["connection"] = connection
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    """Runs the migrations that are missing; safe to run again and from several processes at once."""
    database = engine(database_url, patience="0")  # a migration may take as long as it takes
    with database.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
        connection.commit()
        try:
            command.upgrade(alembic_config(connection), revision)
            connection.commit()
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
            connection.commit()
    database.dispose()
