"""`backup`: everything that Andon is, in one file, taken while it runs."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType

from django.conf import settings
from django.db import connection

from config.backup import archive, postgresql, sqlite
from config.backup.archive import Meta, Refused


@dataclass(frozen=True, slots=True)
class Saved:
    """A written archive: `size` in bytes, how many events it holds."""

    path: Path
    size: int
    events: int


def backup(target: Path, *, force: bool, say: Callable[[str], object], now: datetime) -> Saved:
    """Write one archive of the database, the secret key and the node name; Andon may be up meanwhile.

    The file appears whole (0600, synced, renamed) or not at all. Refuses (Refused) to replace an existing file
    unless `force`, and a database that is missing, damaged or not migrated. OSError when it cannot be written.
    """
    _check(target, force=force)
    # Readable by nobody else, since it holds the secret key; beside the target, so that a rename is enough.
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        dump = engine().dump(folder, say)
        (folder / archive.SECRET).write_text(settings.SECRET_KEY + "\n", encoding="utf-8")
        (folder / archive.NODE).write_text(settings.ANDON_NODE + "\n", encoding="utf-8")
        data = [f"tables/{table}.copy" for table in dump.columns] or [archive.DATABASE]
        meta = Meta(
            **dump.model_dump(),
            format=archive.FORMAT,
            andon=settings.VERSION,
            engine=connection.vendor,
            created_at=now.isoformat().replace("+00:00", "Z"),
            node=settings.ANDON_NODE,
            parts=archive.describe(folder, [archive.SECRET, archive.NODE, *data]),
        )
        say(f"packing {sum(part.size for part in meta.parts) / 2**20:,.1f} MiB")
        packed = folder / "archive"
        with os.fdopen(os.open(packed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
            archive.pack(out, folder, meta)
            out.flush()
            os.fsync(out.fileno())
        size = packed.stat().st_size
        _check(target, force=force)
        packed.replace(target)
        archive.sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Saved(target, size, meta.events)


def engine() -> ModuleType:
    """Return the module that knows the database in use."""
    return sqlite if connection.vendor == "sqlite" else postgresql


def _check(target: Path, *, force: bool) -> None:
    if target.name in {"", "-", ".."} or target.is_dir():
        raise Refused(f"{target} is no file name. Give one, for example andon-backup.tar.gz.")
    if not target.parent.is_dir():
        raise Refused(f"{target.parent} is no directory. Make it first.")
    if os.path.lexists(target) and not force:
        raise Refused(f"{target} exists already. Choose another name, or give --force to replace it.")
