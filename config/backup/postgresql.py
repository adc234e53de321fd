"""PostgreSQL: COPY of every table in one snapshot, and back in one transaction; needs no pg_dump."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.core.management import call_command
from django.db import Error, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone
from psycopg import sql

from config.backup.archive import CHUNK, Dump, Meta, Refused
from services.states import SILENT_AFTER

OWN = ("projects_", "services_", "kanban_", "django_migrations")
# The server's own habits must not decide how a moment is written.
PLAIN = "SET LOCAL datestyle TO 'ISO, YMD'; SET LOCAL timezone TO 'UTC'; SET LOCAL intervalstyle TO 'postgres'"
HEAD = sql.SQL(
    "SELECT coalesce((SELECT max(id) FROM projects_event), (SELECT max(pruned_through) FROM projects_eventfloor), 0)"
)
LOCK_WAIT = "SET LOCAL lock_timeout TO '10s'"


def dump(folder: Path, say: Callable[[str], object]) -> Dump:
    """Copy all tables of one snapshot into folder/tables. Raises Refused when that cannot be done."""
    (folder / "tables").mkdir(mode=0o700)
    counts: dict[str, int] = {}
    columns: dict[str, list[str]] = {}
    sequences: dict[str, int] = {}
    try:
        tables = sorted(connection.introspection.django_table_names(only_existing=True, include_views=False))
        with psycopg.connect(**connection.get_connection_params()) as server, server.cursor() as cursor:
            server.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            server.read_only = True
            cursor.execute(PLAIN)
            if "projects_event" not in tables:
                raise Refused("The database is not migrated, so there is nothing to save. Start Andon: manage.py up.")
            for number, table in enumerate(tables, 1):
                columns[table] = _columns(cursor, table)
                counts[table] = _copy_out(cursor, table, columns[table], folder / "tables" / f"{table}.copy")
                if counts[table]:
                    say(f"copied {table}: {counts[table]:,} rows ({number} of {len(tables)})")
                if last := _last_given(cursor, table):
                    sequences[table] = last
            cursor.execute("SELECT app, name FROM django_migrations ORDER BY id")
            return Dump(
                migrations=cursor.fetchall(),
                counts=counts,
                head=_number(cursor, HEAD),
                columns=columns,
                sequences=sequences,
            )
    except (psycopg.Error, Error) as error:
        raise Refused(f"The database cannot be read: {_told(error)}. manage.py doctor says more.") from None
    finally:
        connection.close()


def check(folder: Path, meta: Meta) -> None:
    """Nothing can be said before the server has read the rows, which happens in the one transaction."""


def present() -> str:
    """Say in a sentence what a restore would replace, "" when nothing of worth; Refused while other machines use it."""
    try:
        with connection.cursor() as cursor:
            tables = set(connection.introspection.table_names(cursor))
            if "services_workerhost" in tables:
                cursor.execute(
                    "SELECT node, host_name FROM services_workerhost "
                    "WHERE status = 'ticking' AND tick_at > %s AND node <> %s ORDER BY node",
                    [timezone.now() - SILENT_AFTER, settings.ANDON_NODE],
                )
                if elsewhere := cursor.fetchone():
                    raise Refused(
                        f"Andon runs on this database on {elsewhere[1]} (node {elsewhere[0]}). Stop it there first."
                    )
            users, projects = (
                _number(cursor, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
                if table in tables
                else 0
                for table in ("auth_user", "projects_project")
            )
    except Error as error:
        raise Refused(f"The database cannot be read: {_told(error)}. manage.py doctor says more.") from None
    finally:
        connection.close()
    return f"The database {_name()} holds users ({users}) or projects ({projects})." if users or projects else ""


def load(folder: Path, meta: Meta, *, stamp: str, say: Callable[[str], object]) -> None:
    """Replace all rows in one transaction, then migrate; whatever ends this process, it is all or nothing.

    Where the tables are not those of the backup's version they are made anew, and migrated with the rows in them.
    Raises Refused when the server refuses any of it.
    """
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(PLAIN)
                cursor.execute(LOCK_WAIT)
            if set(MigrationRecorder(connection).applied_migrations()) != set(meta.migrations):
                say("making the tables of the backup's version")
                _rebuild(set(meta.migrations))
            with connection.cursor() as cursor:
                _fill(cursor, folder, meta, say)
            call_command("migrate", verbosity=0, interactive=False)
    except (psycopg.Error, Error) as error:
        raise Refused(
            f"PostgreSQL refused: {_told(error)}. Nothing was changed. Stop whatever else uses the database, and "
            "look whether the backup is whole."
        ) from None
    finally:
        connection.close()


def _rebuild(wanted: set[tuple[str, str]]) -> None:
    with connection.cursor() as cursor:
        ours = set(connection.introspection.django_table_names())
        names = [name for name in connection.introspection.table_names(cursor) if name in ours or name.startswith(OWN)]
        if names:
            cursor.execute(sql.SQL("DROP TABLE {} CASCADE").format(_names(names)))
        # Else rows that a migration inserts would keep the next from altering their table.
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    executor = MigrationExecutor(connection)
    everything = executor.migration_plan(executor.loader.graph.leaf_nodes(), clean_start=True)
    plan = [step for step in everything if (step[0].app_label, step[0].name) in wanted]
    executor.migrate(None, plan=plan)


def _fill(cursor: Any, folder: Path, meta: Meta, say: Callable[[str], object]) -> None:
    tables = set(connection.introspection.table_names(cursor))
    ours = sorted(tables & set(connection.introspection.django_table_names()))
    if strange := sorted(set(meta.columns) - tables):
        raise Refused(f"The backup holds the table {strange[0]}, which its version of Andon does not have.")
    cursor.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(_names(sorted({*ours, *meta.columns}))))
    cursor.execute("SET CONSTRAINTS ALL DEFERRED")
    for number, (table, columns) in enumerate(meta.columns.items(), 1):
        rows = _copy_in(cursor, table, columns, folder / "tables" / f"{table}.copy")
        if rows != meta.counts.get(table):
            raise Refused(f"The backup's {table} holds {rows} rows, not those that its meta.json tells of.")
        if rows:
            say(f"restored {table}: {rows:,} rows ({number} of {len(meta.columns)})")
    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for table in meta.columns:
        for sequence in connection.introspection.get_sequences(cursor, table):
            greatest = sql.SQL("SELECT coalesce(max({}), 0) FROM {}").format(
                sql.Identifier(sequence["column"]), sql.Identifier(table)
            )
            last = max(_number(cursor, greatest), meta.sequences.get(table, 0))
            if last:
                cursor.execute("SELECT setval(%s::regclass, %s)", [connection.ops.quote_name(sequence["name"]), last])


def _copy_out(cursor: Any, table: str, columns: list[str], target: Path) -> int:
    command = sql.SQL("COPY {} ({}) TO STDOUT (ENCODING 'UTF8')").format(sql.Identifier(table), _names(columns))
    with target.open("xb") as out, cursor.copy(command) as rows:
        for block in rows:
            out.write(block)
    return int(cursor.rowcount)


def _copy_in(cursor: Any, table: str, columns: list[str], source: Path) -> int:
    command = sql.SQL("COPY {} ({}) FROM STDIN (ENCODING 'UTF8')").format(sql.Identifier(table), _names(columns))
    with source.open("rb") as blocks, cursor.copy(command) as rows:
        while block := blocks.read(CHUNK):
            rows.write(block)
    return int(cursor.rowcount)


def _columns(cursor: Any, table: str) -> list[str]:
    found = cursor.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() "
        "AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position",
        [table],
    )
    return [row[0] for row in found.fetchall()]


def _last_given(cursor: Any, table: str) -> int:
    """Return the last number that a table's sequence gave, 0 for none."""
    for sequence in connection.introspection.get_sequences(cursor, table):
        cursor.execute(sql.SQL("SELECT last_value, is_called FROM {}").format(sql.Identifier(sequence["name"])))
        last, is_called = cursor.fetchone()
        return int(last) if is_called else 0
    return 0


def _number(cursor: Any, query: sql.Composable) -> int:
    cursor.execute(query)
    return int(cursor.fetchone()[0])


def _names(names: list[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _name() -> str:
    return str(connection.settings_dict["NAME"])


def _told(error: Exception) -> str:
    """Return what the server said, in one line."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
