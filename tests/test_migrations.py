"""The migrations and the typed tables say the same."""

from __future__ import annotations

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from workers.migrate import alembic_config, upgrade
from workers.tables import Base


def test_a_migrated_database_is_what_the_typed_tables_describe(engine: Engine) -> None:
    """Nothing is left for a migration to do."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_twice_changes_nothing(engine: Engine, database_url: str) -> None:
    """What a second process does that migrates a moment later."""
    upgrade(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar_one() == 1


def test_every_migration_can_be_taken_back(engine: Engine) -> None:
    """Down to nothing and up again."""
    with engine.connect() as connection:
        command.downgrade(alembic_config(connection), "base")
        command.upgrade(alembic_config(connection), "head")
        connection.commit()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM bookings")).scalar_one() == 0


def test_versions_are_sorted_by_their_code_points(engine: Engine) -> None:
    """As Python sorts them, whatever language the database was made for."""
    query = """
        SELECT collname FROM pg_attribute JOIN pg_collation ON pg_collation.oid = attcollation
        WHERE attrelid = 'booking_events'::regclass AND attname = 'version'
        UNION ALL
        SELECT collname FROM pg_index JOIN pg_collation ON pg_collation.oid = indcollation[1]
        WHERE indexrelid = 'booking_events_order'::regclass
    """
    with engine.connect() as connection:
        assert connection.execute(text(query)).scalars().all() == ["C", "C"]
