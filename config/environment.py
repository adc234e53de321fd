"""What the environment says, read once at start and refused with a sentence when it makes no sense.

Knows no Django: `settings.py` builds on the `Environment` that `read` returns.
"""

import ipaddress
import os
import re
import secrets
import shlex
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MIN_SECRET = 32


class Nonsense(ValueError):
    """The environment asks for something that cannot work; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Board:
    """What clients of the board are told that they may assume."""

    default_tenant: str = ""
    lane_by_profile: bool = True
    include_archived: bool = False
    render_markdown: bool = True


@dataclass(frozen=True, slots=True)
class Environment:
    """Andon's settings: paths are absolute, `database_url` and `redis_url` are "" for the embedded default."""

    home: Path
    workspace: tuple[Path, ...]
    bind: str
    port: int
    node: str
    allowed_hosts: tuple[str, ...]
    secret_key: str
    database_url: str
    redis_url: str
    # Set by `up --no-worker` for the web process: ready then means the database only.
    web_only: bool = False
    # What specs may ask for beyond, or short of, spec/services.md, and how many services may live.
    executables: frozenset[str] = frozenset()
    health_hosts: frozenset[str] = frozenset()
    denied_env: tuple[str, ...] = ()
    loop_env: tuple[str, ...] = ()
    loop_agent: str = ""
    services_per_project: int = 50
    services_per_host: int = 500
    # Whether the periodic pass of the dispatcher runs, how many kanban workers a host has, where they reach the pages.
    dispatch: bool = True
    workers_per_host: int = 8
    url: str = ""
    board: Board = Board()
    # Which hosts webhooks may go to that are not public, and how e-mail leaves ("" = not at all).
    webhook_hosts: frozenset[str] = frozenset()
    email_url: str = ""
    email_from: str = ""
    # Where days begin and end in sums of costs.
    time_zone: str = "UTC"
    # Where turn journals lie, and whether a worker that starts calls interrupted what nobody works on.
    journal_roots: tuple[Path, ...] = ()
    recover: bool = True

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.bind)


def read(environ: Mapping[str, str]) -> Environment:
    """Read ANDON_*, DATABASE_URL and REDIS_URL; make ANDON_HOME, its secret key and its node name at first start.

    Raises Nonsense, with a sentence that says what to do, for anything that cannot work.
    """
    bind = environ.get("ANDON_BIND", "").strip() or "127.0.0.1"
    _check_bind(bind)
    allowed = tuple(part.strip() for part in environ.get("ANDON_ALLOWED_HOSTS", "").split(",") if part.strip())
    if not is_loopback(bind) and not allowed:
        raise Nonsense(
            f"ANDON_BIND is {bind}, which other machines can reach. Set ANDON_ALLOWED_HOSTS to the host names "
            "that people will type (for example andon.example.org) and put TLS in front."
        )
    for name in allowed:
        if "*" in name or "/" in name:
            raise Nonsense(f"ANDON_ALLOWED_HOSTS holds {name!r}. List plain host names, separated by commas.")
    database_url = environ.get("DATABASE_URL", "").strip()
    redis_url = environ.get("REDIS_URL", "").strip()
    _check_servers(database_url, redis_url)
    home = _home(environ.get("ANDON_HOME", "").strip())
    return Environment(
        home=home,
        workspace=_roots(environ.get("ANDON_WORKSPACE", "").strip() or "~/workspace"),
        bind=bind,
        port=_port(environ.get("ANDON_PORT", "").strip() or "8321"),
        node=_node(environ.get("ANDON_NODE", "").strip(), home),
        allowed_hosts=tuple(dict.fromkeys((*LOOPBACK_NAMES, *allowed))),
        secret_key=_secret(environ.get("ANDON_SECRET_KEY", ""), home),
        database_url=database_url,
        redis_url=redis_url,
        web_only=environ.get("ANDON_WEB_ONLY", "").strip() == "1",
        executables=frozenset(name.lower() for name in _names(environ, "ANDON_EXECUTABLES", r"[A-Za-z0-9][\w.+-]*")),
        health_hosts=frozenset(name.lower() for name in _names(environ, "ANDON_HEALTH_HOSTS", r"[A-Za-z0-9:][\w.:-]*")),
        denied_env=_names(environ, "ANDON_DENIED_ENV", r"[A-Za-z_]\w*\*?"),
        loop_env=_names(environ, "ANDON_LOOP_ENV", r"[A-Za-z_]\w*"),
        loop_agent=_command(environ, "ANDON_LOOP_AGENT"),
        services_per_project=_count(environ, "ANDON_SERVICES_PER_PROJECT", 50),
        services_per_host=_count(environ, "ANDON_SERVICES_PER_HOST", 500),
        workers_per_host=_count(environ, "ANDON_WORKERS_PER_HOST", 8),
        dispatch=_switch(environ, "ANDON_DISPATCH", default=True),
        url=_url(environ.get("ANDON_URL", "").strip(), bind, _port(environ.get("ANDON_PORT", "").strip() or "8321")),
        board=Board(
            default_tenant=environ.get("ANDON_BOARD_DEFAULT_TENANT", "").strip()[:80],
            lane_by_profile=_switch(environ, "ANDON_BOARD_LANE_BY_PROFILE", default=True),
            include_archived=_switch(environ, "ANDON_BOARD_INCLUDE_ARCHIVED", default=False),
            render_markdown=_switch(environ, "ANDON_BOARD_RENDER_MARKDOWN", default=True),
        ),
        webhook_hosts=frozenset(
            name.lower() for name in _names(environ, "ANDON_WEBHOOK_HOSTS", r"[A-Za-z0-9:][\w.:-]*")
        ),
        email_url=_email_url(environ.get("EMAIL_URL", "").strip()),
        email_from=_email_from(environ.get("ANDON_EMAIL_FROM", "").strip()),
        time_zone=_zone(environ.get("ANDON_TIME_ZONE", "").strip() or "UTC"),
        journal_roots=_roots(
            environ.get("ANDON_JOURNAL_ROOTS", "").strip() or f"{home}/journals", "ANDON_JOURNAL_ROOTS"
        ),
        recover=_switch(environ, "ANDON_RECOVER", default=True),
    )


def _switch(environ: Mapping[str, str], variable: str, *, default: bool) -> bool:
    text = environ.get(variable, "").strip().lower()
    if text not in {"", "on", "off", "1", "0"}:
        raise Nonsense(f"{variable} is {text!r}. Give on or off.")
    return text in {"on", "1"} if text else default


def _url(text: str, bind: str, port: int) -> str:
    if text and not re.fullmatch(r"https?://[^\s/?#@]+/?", text):
        raise Nonsense(f"ANDON_URL is {text!r}. Give the address at which workers reach the pages: http://host:8321.")
    if text:
        return text.rstrip("/")
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(bind, bind)  # noqa: S104 (compared, not bound)
    return f"http://{here}:{port}"


def _names(environ: Mapping[str, str], variable: str, shape: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in environ.get(variable, "").split(",") if part.strip())
    for name in names:
        if not re.fullmatch(shape, name, re.ASCII):
            raise Nonsense(f"{variable} holds {name!r}. List plain names, separated by commas.")
    return names


def _command(environ: Mapping[str, str], variable: str) -> str:
    text = environ.get(variable, "").strip()
    try:
        shlex.split(text)
    except ValueError as error:
        raise Nonsense(f"{variable} cannot be read as a command: {error}. Quote it as in a shell.") from None
    return text


def _email_url(text: str) -> str:
    """Return how e-mail leaves; a refusal never repeats it, for it holds a password."""
    if text and not re.fullmatch(r"smtp(\+tls|\+ssl|s)?://([^\s@/]*@)?[^\s@/:]+(:[0-9]{1,5})?/?", text):
        raise Nonsense("EMAIL_URL is no address of a mail server. Give smtp+tls://user:password@mail.example.org:587.")
    return text


def _email_from(text: str) -> str:
    if text and not re.fullmatch(r"[^\s@<>]+@[^\s@<>]+", text):
        raise Nonsense(f"ANDON_EMAIL_FROM is {text!r}. Give one e-mail address: andon@example.org.")
    return text


def _zone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise Nonsense(f"ANDON_TIME_ZONE is {name!r}. Give a time zone's name, such as UTC or Europe/Berlin.") from None
    return name


def _count(environ: Mapping[str, str], variable: str, default: int) -> int:
    text = environ.get(variable, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise Nonsense(f"{variable} is {text!r}. Give a number from 1 to 100000.")
    return int(text)


def is_loopback(bind: str) -> bool:
    """Say whether only this machine can reach an address; a name counts only when it is `localhost`."""
    try:
        return ipaddress.ip_address(bind.strip("[]")).is_loopback
    except ValueError:
        return bind == "localhost"


def _check_bind(bind: str) -> None:
    if bind == "localhost":
        return
    try:
        ipaddress.ip_address(bind.strip("[]"))
    except ValueError:
        raise Nonsense(
            f"ANDON_BIND is {bind!r}. Give an IP address: 127.0.0.1 for this machine only, 0.0.0.0 for all."
        ) from None


def _check_servers(database_url: str, redis_url: str) -> None:
    if database_url and not database_url.startswith(("postgres://", "postgresql://")):
        raise Nonsense(
            "DATABASE_URL is not a postgres:// address. Unset it to use the embedded SQLite database, "
            "or give postgres://user:password@host:5432/name."
        )
    if redis_url and not redis_url.startswith(("redis://", "rediss://", "unix://")):
        raise Nonsense("REDIS_URL is not a redis:// address. Unset it, or give redis://host:6379/0.")
    if redis_url and not database_url:
        raise Nonsense(
            "REDIS_URL is set but DATABASE_URL is not. Redis serves several machines, which cannot share a SQLite "
            "file: set DATABASE_URL to a PostgreSQL database too, or unset REDIS_URL."
        )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise Nonsense(f"ANDON_PORT is {text!r}. Give a number from 1 to 65535.")
    return int(text)


def _home(text: str) -> Path:
    home = Path(text).expanduser() if text else BASE_DIR / "var"
    if not home.is_absolute():
        raise Nonsense(f"ANDON_HOME is {text!r}. Give an absolute path.")
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = home.resolve()
        if home.stat().st_mode & 0o077:
            home.chmod(0o700)
        (home / "run").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Nonsense(
            f"ANDON_HOME {home} cannot be used ({error.strerror}). Give a directory that this user can write."
        ) from None
    return home


def _roots(text: str, variable: str = "ANDON_WORKSPACE") -> tuple[Path, ...]:
    roots = [Path(part).expanduser() for part in text.split(":") if part.strip()]
    for root in roots:
        if not root.is_absolute():
            raise Nonsense(f"{variable} holds {str(root)!r}. Give absolute paths, separated by colons.")
        if root == Path("/"):
            held = "your projects" if variable == "ANDON_WORKSPACE" else "the journals"
            raise Nonsense(f"{variable} is the whole file system. Give the directory that holds {held}.")
    return tuple(dict.fromkeys(Path(os.path.realpath(root)) for root in roots))


def _node(text: str, home: Path) -> str:
    node = text or _once(home / "node", lambda: f"n-{uuid.uuid4().hex[:12]}").strip()
    if not NODE.fullmatch(node):
        raise Nonsense(f"ANDON_NODE is {node!r}. Use 1 to 64 letters, digits, . - or _, first a letter or digit.")
    return node


def _secret(text: str, home: Path) -> str:
    if text and len(text) < MIN_SECRET:
        raise Nonsense(f"ANDON_SECRET_KEY is shorter than {MIN_SECRET} characters. Unset it to have one made.")
    return text or _once(home / "secret_key", lambda: secrets.token_urlsafe(64)).strip()


def _once(path: Path, make: Callable[[], str]) -> str:
    """Return the file's text, made with 0600 at first start; of two first starts at once the first wins."""
    try:
        if not path.exists():
            fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
            fresh.touch(mode=0o600, exist_ok=False)
            fresh.write_text(make() + "\n", encoding="utf-8")
            try:
                os.link(fresh, path)
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Nonsense(f"{path} cannot be read or made ({error.strerror}). Mend its permissions.") from None
