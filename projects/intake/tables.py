"""Write many rows with one statement: as objects they would take ten times as long."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db import connection, models

from projects.models.journals import columns


def insert(model: type[models.Model], rows: Iterable[Sequence[Any]]) -> None:
    """Insert rows whose values stand in the order of `columns(model)`."""
    names = columns(model)
    holes = ", ".join(["%s"] * len(names))
    _many(f"INSERT INTO {_table(model)} ({', '.join(map(_quoted, names))}) VALUES ({holes})", rows)  # noqa: S608 (names of ours)


def update(model: type[models.Model], names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Update columns `names` of rows given as (values…, primary key)."""
    setters = ", ".join(f"{_quoted(name)} = %s" for name in names)
    _many(f"UPDATE {_table(model)} SET {setters} WHERE id = %s", rows)  # noqa: S608 (names of ours)


def _many(statement: str, rows: Iterable[Sequence[Any]]) -> None:
    ready: Iterable[Sequence[Any]] = rows
    if connection.vendor == "sqlite":
        # As Django writes them; all of ours are UTC.
        ready = (
            [str(value.replace(tzinfo=None)) if isinstance(value, datetime) else value for value in row] for row in rows
        )
    ready = list(ready)
    if ready:
        with connection.cursor() as cursor:
            cursor.executemany(statement, ready)


def _table(model: type[models.Model]) -> str:
    return _quoted(model._meta.db_table)  # noqa: SLF001 (Django's documented way to a table's name)


def _quoted(name: str) -> str:
    return connection.ops.quote_name(name)
