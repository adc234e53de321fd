"""Wake the relays after a commit. An accelerator only: a nudge that is lost costs the poll's 50 or 500 ms.

Embedded: a unix datagram to each web process. PostgreSQL: NOTIFY, or Redis pub/sub where there is Redis.
"""

import contextlib
import logging
import os
import select
import socket
import time
from functools import cache
from pathlib import Path
from typing import Protocol

import redis
from django.conf import settings
from django.db import connection
from django.db.backends.utils import CursorWrapper

CHANNEL = "andon"
# Longer and a dead Redis would be felt by every verb.
REDIS_TIMEOUT_S = 0.25
log = logging.getLogger("andon.nudge")


class Ear(Protocol):
    """Where one relay hears nudges."""

    poll_s: float

    def wait(self) -> None:
        """Return at the first nudge, or after `poll_s` seconds without one."""

    def close(self) -> None: ...


def redis_channel() -> str:
    """Return this installation's channel: others may share the server, and channels know no database numbers."""
    return f"{CHANNEL}-{connection.settings_dict['NAME']}"


def in_transaction(cursor: CursorWrapper) -> None:
    """Tell PostgreSQL to tell the relays when this transaction commits (only where there is no Redis)."""
    if not settings.REDIS_URL:
        cursor.execute("SELECT pg_notify(%s, '')", [CHANNEL])


def after_commit() -> None:
    """Tell all relays that there is something to read; never raises, never blocks."""
    try:
        if settings.REDIS_URL:
            _redis().publish(redis_channel(), b"")
        elif connection.vendor == "sqlite":
            _send_datagrams()
    except (redis.RedisError, OSError) as error:
        log.warning("nudge not sent: %s", error)


def listen() -> Ear:
    """Open the ear that fits the settings."""
    if settings.REDIS_URL:
        return RedisEar()
    return PostgresEar() if connection.vendor == "postgresql" else DatagramEar()


@cache
def _redis() -> redis.Redis:
    return redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
    )


def _folder() -> Path:
    folder = Path(settings.ANDON_HOME) / "run" / "relays"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _send_datagrams() -> None:
    # A unix address holds 107 bytes and a home may be deeper, so it is named through an open directory.
    folder = os.open(_folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sender:
            for name in os.listdir(folder):  # noqa: PTH208 (by descriptor)
                try:
                    sender.sendto(b"\x01", f"/proc/self/fd/{folder}/{name}")
                except ConnectionRefusedError:
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=folder)
                except OSError:
                    # A full buffer means that a nudge is already on its way.
                    continue
    finally:
        os.close(folder)


class DatagramEar:
    """A socket in ANDON_HOME/run/relays; a poll of PRAGMA data_version follows each wait."""

    poll_s = 0.05

    def __init__(self) -> None:
        self._name = f"{os.getpid()}-{os.urandom(3).hex()}"
        self._folder = os.open(_folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(f"/proc/self/fd/{self._folder}/{self._name}")
        # Not select(): a process with a thousand sockets has descriptors that it refuses.
        self._nudged = select.poll()
        self._nudged.register(self._socket, select.POLLIN)

    def wait(self) -> None:
        self._nudged.poll(self.poll_s * 1000)
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(16):
                pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._name, dir_fd=self._folder)
        self._socket.close()
        os.close(self._folder)


class PostgresEar:
    """LISTEN on a connection of its own."""

    poll_s = 0.5

    def __init__(self) -> None:
        import psycopg

        parameters = {
            key: value
            for key, value in connection.get_connection_params().items()
            if key not in {"context", "cursor_factory", "prepare_threshold"}
        }
        self._connection = psycopg.connect(**parameters, autocommit=True)
        self._connection.execute(f"LISTEN {CHANNEL}")

    def wait(self) -> None:
        for _ in self._connection.notifies(timeout=self.poll_s, stop_after=1):
            pass

    def close(self) -> None:
        self._connection.close()


class RedisEar:
    """A Redis subscription; while Redis is away only the poll remains, and it is tried again at each wait."""

    poll_s = 0.5

    def __init__(self) -> None:
        self._client = redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=REDIS_TIMEOUT_S)
        self._subscription: redis.client.PubSub | None = None

    def wait(self) -> None:
        try:
            if self._subscription is None:
                self._subscription = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]  # redis types it not
                self._subscription.subscribe(redis_channel())
            if self._subscription.get_message(timeout=self.poll_s):
                while self._subscription.get_message(timeout=0):
                    pass
        except (redis.RedisError, OSError) as error:
            log.warning("Redis does not answer, polling: %s", error)
            self._subscription = None
            time.sleep(self.poll_s)

    def close(self) -> None:
        with contextlib.suppress(redis.RedisError):
            self._client.close()
