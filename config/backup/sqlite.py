"""SQLite: a copy by the backup API, and its way back by one rename."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from django.core.management import call_command
from django.db import connection
from pydantic import ValidationError

from config.backup.archive import DATABASE, Dump, Meta, Refused, sync

PAGES_A_STEP = 4096
TOLD_EVERY = 8
BUSY_S = 5.0
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR}
LOGS = ("-wal", "-journal")


def live() -> Path:
    """Return where the database is."""
    return Path(str(connection.settings_dict["NAME"]))


def dump(folder: Path, say: Callable[[str], object]) -> Dump:
    """Copy the database as it is at one moment, while others write. Raises Refused when that cannot be done."""
    path = live()
    if not path.is_file():
        raise Refused(f"There is no database at {path} yet. Start Andon once: manage.py up.")
    say(f"copying {path}")
    target = folder / DATABASE
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    steps = 0

    def progress(_: int, remaining: int, total: int) -> None:
        nonlocal steps
        steps += 1
        if remaining and steps % TOLD_EVERY == 0:
            say(f"copied {100 * (total - remaining) // total} %")

    try:
        with closing(_open(path, "ro")) as source, closing(_open(target, "rw")) as copy:
            # With a snapshot held, a commit between two steps does not start the copy anew.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            source.backup(copy, pages=PAGES_A_STEP, progress=progress)
            copy.execute("PRAGMA journal_mode=DELETE")
            return _inspect(copy)
    except sqlite3.Error as error:
        raise Refused(f"The database {path} cannot be read: {error}. manage.py doctor says more.") from None
    except _Unfit as unfit:
        raise Refused(f"The database {path} {unfit}. manage.py doctor says more.") from None


def check(folder: Path, meta: Meta) -> None:
    """Look whether the unpacked database is sound and what the archive said; Refused otherwise."""
    try:
        with closing(_open(folder / DATABASE, "rw")) as database:
            found = _inspect(database)
    except (sqlite3.Error, ValidationError, _Unfit) as error:
        raise Refused(f"The backup's database cannot be used: {error}. Take another backup.") from None
    if (set(found.migrations), found.counts, found.head) != (set(meta.migrations), meta.counts, meta.head):
        raise Refused("The backup's database is not the one that its meta.json tells of. Take another backup.")


def present() -> str:
    """Say in a sentence what a restore would replace; "" when nothing of worth."""
    path = live()
    if not path.exists():
        return ""
    try:
        with closing(_open(path, "ro")) as database:
            users, projects = (
                database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 (constants)
                if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone()
                else 0
                for table in ("auth_user", "projects_project")
            )
    except sqlite3.Error as error:
        return f"The database {path} cannot be read ({error})."
    return f"The database {path} holds users ({users}) or projects ({projects})." if users or projects else ""


def load(folder: Path, meta: Meta, *, stamp: str, say: Callable[[str], object]) -> Path | None:
    """Migrate the unpacked database, then put it in place by one rename; returns where the present one is kept.

    Whatever ends this process, the database is either the present one or the restored one. Raises Refused while
    another process has the present one open.
    """
    staged, path = folder / DATABASE, live()
    say("bringing the copy up to this version")
    _migrate(staged)
    kept = path.with_name(f"{path.name}.before-restore-{stamp}")
    # Of a database that SQLite cannot read it may drop the log, which could help to mend it.
    logs = _link_logs(path, kept)
    try:
        if not path.exists():
            return _replace(staged, path, kept)
        # Locked until the new file stands there: who opened the old one meanwhile would leave a -wal beside it.
        with closing(_open(path, "rw")) as alone:
            # Leaving WAL writes it into the database, and is impossible while anybody else has it open.
            alone.execute("PRAGMA journal_mode=DELETE")
            alone.execute("BEGIN EXCLUSIVE")
            _unlink(logs)
            return _replace(staged, path, kept)
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF not in DAMAGED:
            _unlink(logs)
            raise Refused(
                f"Another process may have {path} open ({error}; `fuser -v {path}` says which). "
                "Stop it, then restore again."
            ) from None
        say(f"the present database is damaged ({error}); it is kept as it is")
        return _replace(staged, path, kept)


def _replace(staged: Path, path: Path, kept: Path) -> Path | None:
    """Rename; what stood there gets a second name first, so that its path always leads to a database."""
    had = path.exists()
    if had:
        os.link(path, kept)
    # Left of a database too damaged to be opened; they would ruin the new one.
    _unlink([path.with_name(path.name + suffix) for suffix in (*LOGS, "-shm")])
    staged.replace(path)
    sync(path.parent)
    return kept if had else None


def _link_logs(path: Path, kept: Path) -> list[Path]:
    pairs = [(path.with_name(path.name + suffix), kept.with_name(kept.name + suffix)) for suffix in LOGS]
    pairs = [(log, link) for log, link in pairs if log.exists()]
    for log, link in pairs:
        os.link(log, link)
    return [link for _, link in pairs]


def _unlink(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _migrate(staged: Path) -> None:
    name = connection.settings_dict["NAME"]
    connection.close()
    connection.settings_dict["NAME"] = staged
    try:
        call_command("migrate", verbosity=0, interactive=False)
    finally:
        connection.close()
        connection.settings_dict["NAME"] = name
    with closing(_open(staged, "rw")) as database:
        # Back to one plain file, since it alone is renamed.
        database.execute("PRAGMA journal_mode=DELETE")
    with staged.open("rb") as written:
        os.fsync(written.fileno())


class _Unfit(Exception):
    """It can be read, but is no database of ours."""


def _inspect(database: sqlite3.Connection) -> Dump:
    """Return what a database holds, after looking at all of it."""
    troubles = [row[0] for row in database.execute("PRAGMA integrity_check(3)")]
    if troubles != ["ok"]:
        raise _Unfit(f"is damaged ({'; '.join(troubles)[:300]})")
    things = database.execute("SELECT name, type, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    if any(kind not in {"table", "index"} or str(text).startswith("CREATE VIRTUAL") for _, kind, text in things):
        raise _Unfit("holds triggers, views or virtual tables, which Andon never makes")
    tables = sorted(name for name, kind, _ in things if kind == "table")
    if not {"django_migrations", "projects_event", "projects_eventfloor"} <= set(tables):
        raise _Unfit("is not migrated, or none of Andon's")
    count = "SELECT count(*) FROM {}".format
    return Dump(
        migrations=database.execute("SELECT app, name FROM django_migrations ORDER BY id").fetchall(),
        counts={table: database.execute(count(connection.ops.quote_name(table))).fetchone()[0] for table in tables},
        head=database.execute(
            "SELECT coalesce((SELECT max(id) FROM projects_event), (SELECT max(pruned_through) "
            "FROM projects_eventfloor), 0)"
        ).fetchone()[0],
    )


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_S, isolation_level=None)
