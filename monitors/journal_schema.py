"""The version of a journal's tables: read, checked, and brought up to date by migrations that ship with the code."""

from pathlib import Path

from sqlalchemy import Connection, inspect, select
from sqlalchemy import column as sql_column
from sqlalchemy import table as sql_table

from monitors.errors import JournalError, Problem
from monitors.journal_tables import REVISIONS

MIGRATIONS = Path(__file__).with_name("journal_migrations")
_MIGRATION_LOCK = 0x7E117A1E
"""Of PostgreSQL's advisory locks, the one that a process holds while it changes the schema."""


def revision(connection: Connection) -> str | None:
    """The version of the tables there; None if there are none. JournalError if they are not a journal's."""
    names = set(inspect(connection).get_table_names())
    if "alembic_version" not in names:
        if names and connection.dialect.name == "sqlite":
            raise JournalError(Problem("file", "an alert journal, or no file", f"tables {', '.join(sorted(names))}"))
        return None
    found = connection.execute(select(sql_column("version_num")).select_from(sql_table("alembic_version"))).scalar()
    return None if found is None else str(found)


def check(connection: Connection) -> None:
    """Raises JournalError unless the tables are of this code's version."""
    found = revision(connection)
    if found in REVISIONS[:-1]:
        wanted = f"{REVISIONS[-1]}, which `telltale alerts upgrade` makes of it"
        raise JournalError(Problem("schema", wanted, f"{found}, which is older"))
    if found is None:
        raise JournalError(Problem("schema", REVISIONS[-1], "no tables"))
    _check_known(found)


def upgrade(connection: Connection, to: str = REVISIONS[-1]) -> None:
    """Brings the tables to version `to`, within the connection's transaction. JournalError if they are newer."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    found = revision(connection)
    if found is not None:
        _check_known(found)
    if found != to:
        _migrate(connection, to)


def _check_known(found: str) -> None:
    if found not in REVISIONS:
        problem = Problem("schema", f"at most {REVISIONS[-1]}, this version's", f"{found}, made by a newer telltale")
        raise JournalError(problem)


def _migrate(connection: Connection, to: str) -> None:
    from alembic import command  # as slow to import as all the rest, and hardly ever needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
