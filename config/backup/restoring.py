"""`restore`: bring back what `backup` saved, or change nothing."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from config import environment, up
from config.backup import archive
from config.backup.archive import Meta, Refused
from config.backup.saving import backup, engine

STAGING = ".restore-"
ENGINES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored, and the files that keep what was there before."""

    meta: Meta
    kept: list[Path]


def restore(path: Path, *, confirm: Callable[[str], bool], say: Callable[[str], object], now: datetime) -> Restored:
    """Replace database, secret key and node name by those of an archive.

    Raises Refused, with nothing changed, while Andon is up on this home, for an archive that is not whole, not
    ours, of a newer Andon or of the other engine, and when `confirm` (asked when there is something to lose, with a
    sentence that says what) answers no. First everything is unpacked, looked at and migrated beside what is there;
    one rename or one commit then replaces the database; the keys follow.
    """
    home = Path(settings.ANDON_HOME)
    with _alone(home):
        for left in home.glob(f"{STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=STAGING, dir=home))
        try:
            say(f"reading {path}")
            meta = archive.unpack(path, folder, _accept)
            _check_keys(path, folder)
            engine().check(folder, meta)
            stamp = _stamp(home, now)
            kept = _agree(meta, home, confirm=confirm, say=say, stamp=stamp, now=now)
            kept.append(engine().load(folder, meta, stamp=stamp, say=say))
            kept.extend(_put_back(folder, home, name, stamp) for name in (archive.SECRET, archive.NODE))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Restored(meta, [file for file in kept if file])


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the locks of `up` and of a worker, so that neither runs nor starts."""
    try:
        lock = up.hold_home(home, "restoring a backup")
    except up.AlreadyUp as held:
        raise Refused(f"Nothing was restored. {held.args[0].split(' (')[0]}. Stop it with Ctrl-C first.") from None
    with lock:
        worker = os.open(home / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(worker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"Nothing was restored. A worker runs on {home}. Stop it first.") from None
            yield
        finally:
            os.close(worker)


def _accept(meta: Meta) -> None:
    """Refuse what this Andon could not serve, before any of it is unpacked."""
    if meta.engine != connection.vendor:
        way = (
            "Set DATABASE_URL to a PostgreSQL database"
            if meta.engine == "postgresql"
            else "Unset DATABASE_URL to use the embedded database"
        )
        raise Refused(
            f"This is a backup of a {ENGINES[meta.engine]} database, and this Andon uses {ENGINES[connection.vendor]}. "
            f"{way}, then restore it."
        )
    loader = MigrationLoader(None)
    known = {*loader.disk_migrations, *(old for new in loader.disk_migrations.values() for old in new.replaces)}
    if unknown := [migration for migration in meta.migrations if migration not in known]:
        raise Refused(
            f"This is a backup of a newer Andon ({meta.andon}; here is {settings.VERSION}): this version does not "
            f"know {'.'.join(unknown[0])}. Update Andon, then restore it."
        )


def _check_keys(path: Path, folder: Path) -> None:
    secret, node = ((folder / name).read_bytes().strip() for name in (archive.SECRET, archive.NODE))
    try:
        fits = len(secret.decode()) >= environment.MIN_SECRET and environment.NODE.fullmatch(node.decode())
    except UnicodeDecodeError:
        fits = None
    if not fits:
        raise Refused(f"{path} holds a secret key or a node name that Andon would refuse to start with.")


def _agree(
    meta: Meta,
    home: Path,
    *,
    confirm: Callable[[str], bool],
    say: Callable[[str], object],
    stamp: str,
    now: datetime,
) -> list[Path | None]:
    """Ask where there is something to lose; on PostgreSQL save that first. Returns what keeps it."""
    loss = engine().present()
    if not loss:
        return []
    if not confirm(f"{loss} The backup of {meta.created_at} replaces it."):
        raise Refused("Nothing was changed.")
    if connection.vendor == "sqlite":
        return []
    say("saving the present database first")
    saved = backup(home / f"andon-postgresql.before-restore-{stamp}.tar.gz", force=False, say=say, now=now)
    return [saved.path]


def _put_back(folder: Path, home: Path, name: str, stamp: str) -> Path | None:
    """Rename one key file in place; another one that stood there is kept."""
    fresh, path = folder / name, home / name
    if path.exists() and path.read_bytes() == fresh.read_bytes():
        path.chmod(0o600)
        return None
    kept = None
    if path.exists():
        kept = home / f"{name}.before-restore-{stamp}"
        os.link(path, kept)
        kept.chmod(0o600)
    fresh.replace(path)
    archive.sync(home)
    return kept


def _stamp(home: Path, now: datetime) -> str:
    """Return the UTC time for the names of what is kept; two restores within a second get two."""
    stamp = first = now.strftime("%Y%m%dT%H%M%SZ")
    number = 1
    while any(home.glob(f"*.before-restore-{stamp}*")):
        number += 1
        stamp = f"{first}-{number}"
    return stamp
