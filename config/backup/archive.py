"""The archive: a gzipped tar whose first member says what follows, so that nothing unexpected is ever unpacked.

Knows no Django. Members, in this order: meta.json, secret_key, node, then andon.sqlite3 or tables/NAME.copy.
Headers are read one by one and must be exactly those that meta.json announced: links, devices, strange names,
extended headers and bombs have no way in.
"""

import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

FORMAT = 1
META = "meta.json"
SECRET = "secret_key"  # noqa: S105 (a file's name)
NODE = "node"
DATABASE = "andon.sqlite3"
MAX_META = 4 * 1024 * 1024
MAX_TEXT = 4096
MAX_PADDING = 1024 * 1024
# What a file system should keep free beside what is unpacked.
RESERVE = 64 * 1024 * 1024
CHUNK = 1024 * 1024
KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a directory",
}

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class Refused(Exception):
    """Not done, and nothing was changed; the text says why and what to do."""


class Part(BaseModel):
    """One member of the archive; `size` in bytes."""

    model_config = ConfigDict(frozen=True)
    name: str = Field(pattern=r"^(secret_key|node|andon\.sqlite3|tables/[a-z][a-z0-9_]{0,62}\.copy)$")
    size: NonNegativeInt
    sha256: str


class Dump(BaseModel):
    """What a database held when it was copied.

    `counts`: rows by table; `head`: the greatest event id; of PostgreSQL also the `columns` by table in the order
    of the copy, and by table the last number that its sequence gave.
    """

    model_config = ConfigDict(frozen=True)
    migrations: list[tuple[str, str]]
    counts: dict[Name, NonNegativeInt]
    head: NonNegativeInt
    columns: dict[Name, list[str]] = {}
    sequences: dict[Name, NonNegativeInt] = {}


class Meta(Dump):
    """The first member. `created_at` is ISO 8601 UTC, `andon` the version that wrote it."""

    format: int
    andon: str = Field(max_length=64)
    engine: str = Field(pattern="^(sqlite|postgresql)$")
    created_at: str = Field(pattern=r"^[0-9T:.+Z-]{10,40}$")
    node: str = Field(max_length=64)
    parts: list[Part]

    @property
    def events(self) -> int:
        return self.counts.get("projects_event", 0)


def sync(folder: Path) -> None:
    """Have a folder's renames survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe(folder: Path, names: list[str]) -> list[Part]:
    """Return the members that files of a folder will be."""
    parts = []
    for name in names:
        with (folder / name).open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            parts.append(Part(name=name, size=source.tell(), sha256=digest))
    return parts


def pack(out: IO[bytes], folder: Path, meta: Meta) -> None:
    """Write the archive of a folder's files."""
    document = meta.model_dump_json(indent=1).encode()
    with (
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=out) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):
        _add(tar, META, len(document), io.BytesIO(document))
        for part in meta.parts:
            with (folder / part.name).open("rb") as source:
                _add(tar, part.name, part.size, source)


def _add(tar: tarfile.TarFile, name: str, size: int, source: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.size = 0o600, size
    tar.addfile(member, source)


def unpack(path: Path, folder: Path, accept: Callable[[Meta], None]) -> Meta:
    """Unpack an archive into an empty folder, files 0600 and synced; `accept` sees what it is before any data is read.

    Raises Refused for what is not whole, not ours, or too large for the disk; the folder may then hold some files.
    """
    try:
        with _plain_file(path) as raw, gzip.GzipFile(fileobj=raw, mode="rb") as stream:
            meta = _meta(path, _exactly(stream, _header(path, stream, META, MAX_META), padded=True))
            _fit(path, folder, meta)
            accept(meta)
            for part in meta.parts:
                if _header(path, stream, part.name, part.size) != part.size:
                    raise Refused(f"{path} is damaged: {part.name} is shorter than it should be. {_ELSE}")
                _copy(path, stream, part, folder / part.name)
            _end(path, stream)
    except EOFError:
        raise Refused(f"{path} is truncated: it ends too early. {_ELSE}") from None
    except (gzip.BadGzipFile, zlib.error, tarfile.TarError):
        raise Refused(f"{path} is damaged, or no backup of Andon. {_ELSE}") from None
    return meta


_ELSE = "Copy it again, or take another backup."


def _plain_file(path: Path) -> IO[bytes]:
    try:
        # A pipe would otherwise wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"{path} is not a file.")
    return os.fdopen(descriptor, "rb")


def _header(path: Path, stream: gzip.GzipFile, name: str, most: int) -> int:
    """Read the header of the one member that may stand here and return its size."""
    found = tarfile.TarInfo.frombuf(_exactly(stream, tarfile.BLOCKSIZE), "utf-8", "replace")
    if found.name != name or found.type not in {tarfile.REGTYPE, tarfile.AREGTYPE}:
        kind = KINDS.get(found.type, "a member")
        raise Refused(
            f"{path} is no backup of Andon, or was tampered with: it holds {kind} named {found.name[:100]!r} "
            f"where {name} belongs."
        )
    if not 0 <= found.size <= most:
        raise Refused(f"{path} is no backup of Andon, or was tampered with: its {name} is oversized.")
    return found.size


def _meta(path: Path, document: bytes) -> Meta:
    try:
        version = _Format.model_validate_json(document).format
        if version > FORMAT:
            raise Refused(f"{path} was written by a newer Andon (format {version}). Update Andon, then restore it.")
        meta = Meta.model_validate_json(document)
    except ValidationError:
        raise Refused(f"{path} is no backup of Andon, or was tampered with: its {META} makes no sense.") from None
    tables = [f"tables/{table}.copy" for table in meta.columns]
    if [part.name for part in meta.parts] != [SECRET, NODE, *([DATABASE] if meta.engine == "sqlite" else tables)]:
        raise Refused(f"{path} is no backup of Andon, or was tampered with: its {META} names the wrong members.")
    return meta


class _Format(BaseModel):
    format: int


def _fit(path: Path, folder: Path, meta: Meta) -> None:
    if any(part.size > MAX_TEXT for part in meta.parts if part.name in {SECRET, NODE}):
        raise Refused(f"{path} is no backup of Andon, or was tampered with: its keys are oversized.")
    wanted, free = sum(part.size for part in meta.parts) + RESERVE, shutil.disk_usage(folder).free
    if wanted > free:
        raise Refused(
            f"{path} needs {wanted / 2**20:,.0f} MiB in {folder.parent}, where {free / 2**20:,.0f} MiB are free. "
            "Make room first."
        )


def _copy(path: Path, stream: gzip.GzipFile, part: Part, target: Path) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    digest = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        left = part.size
        while left:
            chunk = _exactly(stream, min(left, CHUNK))
            left -= len(chunk)
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    _exactly(stream, -part.size % tarfile.BLOCKSIZE)
    if digest.hexdigest() != part.sha256:
        raise Refused(f"{path} is damaged: {part.name} is not what was saved. {_ELSE}")


def _exactly(stream: gzip.GzipFile, size: int, *, padded: bool = False) -> bytes:
    """Read so many bytes, and what fills their last block; EOFError when there are fewer."""
    wanted = size + (-size % tarfile.BLOCKSIZE if padded else 0)
    found = stream.read(wanted)
    if len(found) < wanted:
        raise EOFError
    return found[:size]


def _end(path: Path, stream: gzip.GzipFile) -> None:
    """Read to the end, which also checks the checksum; only zeros may follow."""
    rest = stream.read(MAX_PADDING)
    if len(rest) < 2 * tarfile.BLOCKSIZE:
        raise EOFError
    if any(rest) or stream.read(1):
        raise Refused(f"{path} is no backup of Andon, or was tampered with: something follows its last member.")
