"""`doctor`: what is wrong with this installation, and what to do next.

A check is a function that yields findings. None may stop the rest: one that raises is a finding itself.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection

OK, WARN, FAIL = "ok", "warn", "fail"
MIN_PYTHON = (3, 11)
MIN_SQLITE = (3, 38)
MIN_POSTGRESQL = 13
MIN_GIT = (2, 38)
MIB = 1024 * 1024
INTEGRITY_WITHIN_S = 3.0
ANSWERS_WITHIN_S = 3
EVENTS_MANY = 2_500_000
INOTIFY = Path("/proc/sys/fs/inotify")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw: `status` is ok, warn or fail; a `next_step` for the last two."""

    check: str
    status: str
    detail: str
    next_step: str = ""


class Installation:
    """What the checks share: the time, and whether the database can be asked."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.is_migrated = False


Check = Callable[[Installation], Iterator[Finding]]


def examine(now: datetime) -> list[Finding]:
    """Run all checks in order, within some seconds; never raises."""
    installation = Installation(now)
    return [finding for name, check in CHECKS for finding in _run(name, check, installation)]


def _run(name: str, check: Check, installation: Installation) -> Iterator[Finding]:
    if check in NEED_ROWS and not installation.is_migrated:
        yield Finding(name, WARN, "not looked at, since the database cannot be asked", "mend the database first")
        return
    try:
        for found in check(installation):
            yield Finding(name, found.status, _line(found.detail), _line(found.next_step))
    except Exception as error:  # noqa: BLE001 (a broken installation breaks checks in ways nobody foresaw)
        told = _line(f"this check failed: {type(error).__name__}: {error}")[:500]
        yield Finding(name, FAIL, told, "mend what it names, then run manage.py doctor again")


def _ok(detail: str) -> Finding:
    return Finding("", OK, detail)


def _warn(detail: str, next_step: str) -> Finding:
    return Finding("", WARN, detail, next_step)


def _fail(detail: str, next_step: str) -> Finding:
    return Finding("", FAIL, detail, next_step)


def platform(_: Installation) -> Iterator[Finding]:
    """Linux, and pidfds to hear at once when a process ends."""
    if sys.platform != "linux":
        yield _fail(f"{sys.platform} is not Linux", "run Andon on a Linux machine or in a Linux container")
        return
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        step = "use Linux 5.3 or newer, and a container profile (seccomp) that allows pidfd_open"
        yield _fail(f"Linux {os.uname().release}, but pidfd_open does not work ({error})", step)
        return
    yield _ok(f"Linux {os.uname().release}, pidfd_open works")


def versions(_: Installation) -> Iterator[Finding]:
    """Python and its SQLite."""
    told = f"Python {'.'.join(map(str, sys.version_info[:3]))}, SQLite {sqlite3.sqlite_version}"
    if sys.version_info < MIN_PYTHON:
        yield _fail(told, "use Python 3.11 or newer")
    elif sqlite3.sqlite_version_info < MIN_SQLITE and connection.vendor == "sqlite":
        yield _fail(told, "use a Python with SQLite 3.38 or newer, or set DATABASE_URL to a PostgreSQL database")
    else:
        yield _ok(told)


def home(_: Installation) -> Iterator[Finding]:
    """ANDON_HOME is ours alone and can be written, and so is the secret key."""
    folder = Path(settings.ANDON_HOME)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode != 0o700:
        yield _fail(f"{folder} has mode {mode:04o}", f"chmod 700 {folder}")
    secret = folder / "secret_key"
    if secret.exists() and stat.S_IMODE(secret.stat().st_mode) != 0o600:
        told = f"{secret} has mode {stat.S_IMODE(secret.stat().st_mode):04o}"
        yield _fail(told, f"chmod 600 {secret}; make a new one (remove it, start Andon) if others may have read it")
    elif not secret.exists() and not os.environ.get("ANDON_SECRET_KEY"):
        yield _fail(f"{secret} is missing", "start Andon, which makes one; everybody signs in again")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield _fail(f"{folder} cannot be written: {error.strerror}", f"make it writable for user {os.getuid()}")
        return
    if mode == 0o700:
        yield _ok(f"{folder} is private and can be written")


def disk(_: Installation) -> Iterator[Finding]:
    """Room where the database and the logs grow."""
    free = shutil.disk_usage(settings.ANDON_HOME).free
    told = f"{free / MIB:,.0f} MiB free in {settings.ANDON_HOME}"
    if free < 100 * MIB:
        yield _fail(told, "make room now: a full disk stops the database")
    elif free < 1024 * MIB:
        yield _warn(told, "make room")
    else:
        yield _ok(told)


def database(installation: Installation) -> Iterator[Finding]:
    """It can be reached, is sound, and has the tables of this version."""
    is_sound = True
    for finding in _sqlite() if connection.vendor == "sqlite" else _postgresql():
        is_sound = is_sound and finding.status != FAIL
        yield finding
    if is_sound:
        yield from _migrations(installation)


def _sqlite() -> Iterator[Finding]:
    path = Path(str(connection.settings_dict["NAME"]))
    if not path.exists():
        yield _fail(f"there is no database at {path} yet", "start Andon, which makes it: manage.py up")
        return
    deadline = time.monotonic() + INTEGRITY_WITHIN_S
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=ANSWERS_WITHIN_S, isolation_level=None)) as raw:
            mode = raw.execute("PRAGMA journal_mode").fetchone()[0]
            size = raw.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
            raw.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            troubles = _troubles(raw)
    except sqlite3.Error as error:
        told = f"{path}: {error}"
        if "locked" in str(error):
            yield _fail(told, f"another process holds it: `fuser -v {path}` says which; end that one")
        else:
            yield _fail(told, "stop Andon and bring a backup back: manage.py restore FILE (keeps the present one)")
        return
    if troubles:
        step = "stop Andon and bring a backup back: manage.py restore FILE (keeps the present one)"
        yield _fail(f"{path} is damaged: {troubles[0]}", step)
        return
    sound = "sound" if troubles == [] else f"nothing wrong found in {INTEGRITY_WITHIN_S:g} s"
    yield _ok(f"{path}, {size / MIB:,.1f} MiB, {sound}")
    if mode == "wal":
        yield _ok("journal mode WAL")
    else:
        yield _warn(f"journal mode {mode}", "start Andon, which sets WAL; a network file system cannot have it")


def _troubles(raw: sqlite3.Connection) -> list[str] | None:
    """Return what quick_check finds, None when it did not end in time."""
    try:
        return [row[0] for row in raw.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return None
        raise


def _postgresql() -> Iterator[Finding]:
    import psycopg

    name = f"database {connection.settings_dict['NAME']} on {connection.settings_dict['HOST'] or 'this machine'}"
    parameters = {**connection.get_connection_params(), "connect_timeout": ANSWERS_WITHIN_S}
    try:
        with psycopg.connect(**parameters) as server:
            version = server.info.server_version // 10000
            size = server.execute("SELECT pg_database_size(current_database())").fetchone()
    except psycopg.Error as error:
        step = "start PostgreSQL, make the database (createdb) or correct DATABASE_URL"
        yield _fail(f"{name}: {error}", step)
        return
    told = f"PostgreSQL {version}, {name}, {(size or [0])[0] / MIB:,.1f} MiB"
    yield _ok(told) if version >= MIN_POSTGRESQL else _fail(told, "update PostgreSQL to 13 or newer")


def _migrations(installation: Installation) -> Iterator[Finding]:
    from django.db.migrations.executor import MigrationExecutor

    try:
        executor = MigrationExecutor(connection)
        waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
        applied, known = set(executor.loader.applied_migrations), set(executor.loader.disk_migrations)
    finally:
        connection.close()
    if unknown := sorted(applied - known):
        told = f"made by a newer Andon: {len(unknown)} migrations are unknown here, first {'.'.join(unknown[0])}"
        yield _fail(told, "update Andon, or bring back a backup of this version")
    elif waiting:
        yield _fail(f"{len(waiting)} migrations are not applied", "start Andon, or run manage.py migrate")
    else:
        installation.is_migrated = True
        yield _ok(f"all {len(applied)} migrations are applied")


def redis(_: Installation) -> Iterator[Finding]:
    """The server of queue and nudges, where one is set."""
    if not settings.REDIS_URL:
        yield _ok("not used: the queue is a file in ANDON_HOME")
        return
    from redis import Redis

    with contextlib.closing(
        Redis.from_url(settings.REDIS_URL, socket_timeout=ANSWERS_WITHIN_S, socket_connect_timeout=ANSWERS_WITHIN_S)
    ) as server:
        try:
            about: Any = server.info("server")
        except Exception as error:  # noqa: BLE001 (its errors and the socket's)
            yield _fail(f"Redis does not answer: {error}", "start Redis or correct REDIS_URL")
            return
    yield _ok(f"Redis {about['redis_version']} answers")


def worker(installation: Installation) -> Iterator[Finding]:
    """This node's worker ticks; other nodes' are told when they went silent."""
    from services.models import WorkerHost
    from services.states import SILENT_AFTER, HostStatus

    rows = {row.node: row for row in WorkerHost.objects.order_by("node")}
    mine = rows.pop(settings.ANDON_NODE, None)
    start = "start it with manage.py up"
    if mine is None:
        yield _warn(f"no worker ever ran on node {settings.ANDON_NODE}", start)
    elif mine.status == HostStatus.STOPPED:
        yield _warn(f"the worker of node {mine.node} is stopped", start)
    else:
        age = installation.now - mine.tick_at
        told = f"the worker of node {mine.node} (pid {mine.pid}) ticked {max(0, age.total_seconds()):.0f} s ago"
        if mine.status == HostStatus.TICKING and age <= SILENT_AFTER:
            yield _ok(told)
        else:
            yield _fail(told, f"look at what manage.py up printed last; {start}")
        if mine.watching == "polling":
            step = "sysctl fs.inotify.max_user_watches=524288 (and in /etc/sysctl.d to keep it), then restart Andon"
            yield _warn("files are polled each second, since inotify refused", step)
    for row in rows.values():
        late = installation.now - row.tick_at > SILENT_AFTER
        if row.status == HostStatus.SILENT or (row.status == HostStatus.TICKING and late):
            yield _warn(f"the worker of node {row.node} on {row.host_name} is silent", "start Andon again there")


def inotify(_: Installation) -> Iterator[Finding]:
    """The kernel allows the watches that the projects need."""
    from projects.importer.watcher import watched_paths

    wanted = len(watched_paths())
    most = int((INOTIFY / "max_user_watches").read_text())
    instances = int((INOTIFY / "max_user_instances").read_text())
    told = f"{wanted:,} watches wanted, max_user_watches {most:,}, max_user_instances {instances:,}"
    # Editors and other programs of the same user count too.
    if wanted * 2 > most:
        step = f"sysctl fs.inotify.max_user_watches={max(524288, wanted * 4)}; without, files are polled each second"
        yield _warn(told, step)
    else:
        yield _ok(told)


def workspace(_: Installation) -> Iterator[Finding]:
    """Each root is there and can be read."""
    from projects import importer, ralph

    for root in settings.ANDON_WORKSPACE:
        if not root.is_dir():
            yield _fail(f"{root} does not exist", "make it, or set ANDON_WORKSPACE to where your projects are")
        elif not os.access(root, os.R_OK | os.X_OK):
            yield _fail(f"{root} cannot be read", f"let user {os.getuid()} read it")
        else:
            number = sum(ralph.is_project(path) for path in importer.directories(root))
            if number:
                yield _ok(f"{root}: {number} projects")
            else:
                yield _warn(f"{root}: no projects", "put projects there, or run manage.py demo for two to try")


def git(_: Installation) -> Iterator[Finding]:
    """git is there and new enough."""
    from projects.git import GitError, run

    try:
        answer = run(["--version"], Path(settings.ANDON_HOME), timeout_s=ANSWERS_WITHIN_S).decode()
    except GitError as error:
        yield _fail(str(error), "install git 2.38 or newer")
        return
    found = re.search(r"(\d+)\.(\d+)", answer)
    if found and (int(found[1]), int(found[2])) >= MIN_GIT:
        yield _ok(answer)
    else:
        yield _fail(answer, "install git 2.38 or newer")


def projects(_: Installation) -> Iterator[Finding]:
    """What could not be imported."""
    from projects.models import Project

    known = Project.objects.filter(missing_since=None)
    broken = known.exclude(error="")
    if number := broken.count():
        slugs = ", ".join(broken.order_by("slug").values_list("slug", flat=True)[:3])
        yield _warn(f"{number} projects cannot be read: {slugs}", "their pages say what is wrong with the files")
    else:
        yield _ok(f"{known.count()} projects, none with an error")


def users(installation: Installation) -> Iterator[Finding]:
    """Somebody can sign in."""
    from django.contrib.auth import get_user_model

    from projects.models import SignInLink

    active = list(get_user_model().objects.filter(is_active=True).only("password"))
    able = sum(user.has_usable_password() for user in active)
    links = SignInLink.objects.filter(used_at=None, expires_at__gt=installation.now, user__is_active=True).count()
    told = f"{len(active)} active users, {able} with a password, {links} unused sign-in links"
    if able or links:
        yield _ok(told)
    elif active:
        yield _fail(f"{told}: nobody can sign in", "manage.py sign-in-link admin")
    else:
        yield _fail(f"{told}: nobody can sign in", "manage.py up makes the user admin and prints a sign-in link")


def events(_: Installation) -> Iterator[Finding]:
    """The log has a bounded size."""
    from projects.models import Event

    # By its ends: counting millions of rows takes seconds.
    first = Event.objects.order_by("id").values_list("id", flat=True).first() or 1
    last = Event.objects.order_by("-id").values_list("id", flat=True).first() or 0
    told = f"about {last - first + 1:,} events, the last is {last:,}"
    if last - first >= EVENTS_MANY:
        yield _warn(told, "the worker deletes old ones in batches; see on /system/ whether its prune_events fails")
    else:
        yield _ok(told)


def bind(_: Installation) -> Iterator[Finding]:
    """Who can reach the pages."""
    told = f"the pages are at {settings.ANDON_BIND}, port {settings.ANDON_PORT}"
    if settings.ANDON.is_loopback:
        yield _ok(f"{told}, for this machine only")
    else:
        yield _warn(f"{told}, for other machines too", "put TLS in front: a proxy that sets X-Forwarded-Proto")


CHECKS: tuple[tuple[str, Check], ...] = tuple(
    (check.__name__, check)
    for check in (
        *(platform, versions, home, disk, database, redis, worker, inotify),
        *(workspace, git, projects, users, events, bind),
    )
)
NEED_ROWS = (worker, projects, users, events)


def _line(text: Any) -> str:
    """Return a text as one printable line; names of files may hold anything."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(str(text).split()))
