"""Nudges: quick where they arrive, harmless where they do not."""

import contextlib
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings as configured
from django.db import connection

from projects import nudge
from projects.events import SWEEP, record, writing

# Between commit and nudge; a slow machine must not fail, a lost nudge must.
AT_ONCE_S = 0.05
committed = pytest.mark.django_db(transaction=True)
is_sqlite = "sqlite" in configured.DATABASES["default"]["ENGINE"]
on_sqlite = pytest.mark.skipif(not is_sqlite, reason="datagrams are the embedded half's nudges")
on_postgres = pytest.mark.skipif(is_sqlite, reason="NOTIFY needs PostgreSQL (DATABASE_URL)")
on_redis = pytest.mark.skipif(not configured.REDIS_URL, reason="pub/sub needs Redis (REDIS_URL)")


@pytest.fixture(autouse=True)
def _own_channel(monkeypatch) -> None:
    """Redis has one set of channels for all its databases, and other tests publish too."""
    monkeypatch.setattr(nudge, "CHANNEL", f"andon_{os.getpid()}")


@pytest.fixture
def ears() -> Iterator[list[nudge.Ear]]:
    opened: list[nudge.Ear] = []
    yield opened
    for ear in opened:
        ear.close()


@pytest.fixture
def datagrams(ears, home) -> nudge.DatagramEar:
    """An ear that waits so long that only a nudge can be quick, whatever the database."""
    ear = nudge.DatagramEar()
    ear.poll_s = 3
    ears.append(ear)
    return ear


@pytest.fixture
def forget_redis() -> Iterator[None]:
    """Another REDIS_URL needs another client, and it must not outlive its test."""
    with contextlib.closing(nudge._redis()) if configured.REDIS_URL else contextlib.nullcontext():
        nudge._redis.cache_clear()
    yield
    if nudge._redis.cache_info().currsize:
        nudge._redis().close()
    nudge._redis.cache_clear()


def heard(ear: nudge.Ear) -> float:
    """Return how long the ear waited, in seconds."""
    begun = time.monotonic()
    ear.wait()
    return time.monotonic() - begun


def sockets(home: Path) -> list[str]:
    return sorted(os.listdir(home / "run" / "relays"))


def tell(now) -> float:
    """Commit one event; returns the monotonic time of the commit."""
    with writing():
        record("a.first", "a:1", by=SWEEP, now=now)
    return time.monotonic()


def delay_of_nudge(ear: nudge.Ear, now, turns: int = 5) -> float:
    """Return the shortest time between a commit and the end of a wait on another thread."""
    delays = []
    for _ in range(turns):
        ended: list[float] = []
        waiting = threading.Thread(target=lambda ended=ended: (ear.wait(), ended.append(time.monotonic())))
        waiting.start()
        time.sleep(0.02)
        told = tell(now)
        waiting.join()
        delays.append(ended[0] - told)
    return min(delays)


# Datagrams


@on_sqlite
@committed
def test_the_ear_of_the_embedded_half_takes_datagrams(home, ears):
    ears.append(nudge.listen())
    assert isinstance(ears[0], nudge.DatagramEar)
    assert ears[0].poll_s == 0.05


@on_sqlite
@committed
def test_a_commit_is_heard_at_once(now, datagrams):
    assert delay_of_nudge(datagrams, now) < AT_ONCE_S


@on_sqlite
@committed
def test_a_rollback_is_not_heard(now, datagrams):
    datagrams.poll_s = 0.05
    with contextlib.suppress(ZeroDivisionError), writing():
        record("a.first", "a:1", by=SWEEP, now=now)
        raise ZeroDivisionError
    assert heard(datagrams) >= 0.05


LISTEN = """
import sys, time
import django
django.setup()
from projects import nudge
ear = nudge.DatagramEar()
ear.poll_s = 10
for _ in range(3):
    print("ready", flush=True)
    ear.wait()
    print(time.monotonic(), flush=True)
ear.close()
"""


@on_sqlite
@committed
def test_another_process_hears_a_commit_at_once(now, home):
    env = {**os.environ, "ANDON_HOME": str(home), "ANDON_NODE": "test-node"}
    with subprocess.Popen([sys.executable, "-c", LISTEN], env=env, stdout=subprocess.PIPE, text=True) as other:
        delays = []
        for _ in range(3):
            assert other.stdout.readline() == "ready\n"
            time.sleep(0.02)
            told = tell(now)
            # Both clocks are the machine's.
            delays.append(float(other.stdout.readline()) - told)
        assert min(delays) < AT_ONCE_S
    assert other.returncode == 0
    assert sockets(home) == []


def test_waits_no_longer_than_its_poll_and_drains_what_came(home, datagrams):
    datagrams.poll_s = 0.2
    for _ in range(5):
        nudge._send_datagrams()
    assert heard(datagrams) < 0.2
    assert 0.2 <= heard(datagrams) < 1


def test_all_ears_hear(home, ears):
    for _ in range(3):
        ears.append(nudge.DatagramEar())
    for ear in ears:
        ear.poll_s = 3
    nudge._send_datagrams()
    assert sum(heard(ear) for ear in ears) < 0.5


def test_a_home_deeper_than_an_address_is_long(tmp_path, settings, ears):
    home = tmp_path.joinpath(*["a-rather-deep-directory"] * 6)
    settings.ANDON_HOME = home
    assert len(os.fsencode(home)) > 107
    ears.append(nudge.DatagramEar())
    ears[0].poll_s = 3
    nudge._send_datagrams()
    assert heard(ears[0]) < 0.5
    assert len(sockets(home)) == 1


def test_nobody_else_can_reach_the_sockets(tmp_path, settings, ears):
    settings.ANDON_HOME = tmp_path / "home"
    before = os.umask(0)
    try:
        ears.append(nudge.DatagramEar())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "home" / "run" / "relays").stat().st_mode) == 0o700


def test_dead_sockets_are_unlinked_and_live_ones_hear(home, datagrams):
    dead = home / "run" / "relays" / "0-dead"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as killed:
        folder = os.open(dead.parent, os.O_RDONLY)
        killed.bind(f"/proc/self/fd/{folder}/{dead.name}")
        os.close(folder)
    assert dead.is_socket()
    nudge._send_datagrams()
    assert not dead.exists()
    assert len(sockets(home)) == 1
    assert heard(datagrams) < 0.5


def test_what_is_no_socket_is_left_alone(home, datagrams):
    stray = home / "run" / "relays" / "0-stray"
    stray.write_text("")
    (home / "run" / "relays" / "0-folder").mkdir()
    nudge._send_datagrams()
    assert heard(datagrams) < 0.5


def test_a_full_buffer_is_a_nudge_on_its_way(home, ears, datagrams):
    second = nudge.DatagramEar()
    second.poll_s = 3
    ears.append(second)
    begun = time.monotonic()
    for _ in range(2000):
        nudge._send_datagrams()
    assert time.monotonic() - begun < 2
    assert len(sockets(home)) == 2
    assert heard(datagrams) < 0.5
    assert heard(second) < 0.5
    datagrams.poll_s = 0.2
    assert heard(datagrams) >= 0.2
    nudge._send_datagrams()
    assert heard(datagrams) < 0.2


def test_closing_leaves_no_socket_and_no_descriptor(home):
    before = len(os.listdir("/proc/self/fd"))
    ear = nudge.DatagramEar()
    nudge._send_datagrams()
    ear.close()
    assert sockets(home) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_hears_in_a_process_with_a_thousand_open_descriptors(home, ears):
    """An ear that is opened anew after an error gets a number that select() refuses."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as undo:
        if limits[0] < 1200:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1200, limits[1]))
            undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        taken = os.open("/dev/null", os.O_RDONLY)
        undo.callback(os.close, taken)
        while taken < 1024:
            taken = os.dup(taken)
            undo.callback(os.close, taken)
        ears.append(nudge.DatagramEar())
        ears[0].poll_s = 3
        nudge._send_datagrams()
        assert heard(ears[0]) < 0.5


@on_sqlite
@committed
def test_a_home_that_is_gone_fails_no_verb(now, tmp_path, settings, caplog):
    settings.ANDON_HOME = tmp_path / "file"
    settings.ANDON_HOME.write_text("not a directory")
    nudge.after_commit()
    assert "nudge not sent" in caplog.text


# PostgreSQL


@on_postgres
@committed
def test_without_redis_postgresql_tells_of_a_commit_at_once(now, settings, ears):
    settings.REDIS_URL = ""
    ears.append(nudge.listen())
    assert isinstance(ears[0], nudge.PostgresEar)
    assert ears[0].poll_s == 0.5
    ears[0].poll_s = 3
    assert delay_of_nudge(ears[0], now) < AT_ONCE_S


@on_postgres
@committed
def test_postgresql_tells_of_no_rollback_and_waits_no_longer_than_its_poll(now, settings, ears):
    settings.REDIS_URL = ""
    ears.append(nudge.listen())
    with contextlib.suppress(ZeroDivisionError), writing():
        record("a.first", "a:1", by=SWEEP, now=now)
        raise ZeroDivisionError
    assert 0.45 <= heard(ears[0]) < 1.5


@on_postgres
@committed
def test_the_ear_connects_with_the_options_of_the_database(settings, ears, monkeypatch):
    options = {**connection.settings_dict["OPTIONS"], "application_name": "andon-ear"}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    ears.append(nudge.PostgresEar())
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_stat_activity WHERE application_name = 'andon-ear'")
        assert cursor.fetchall() == [(connection.settings_dict["NAME"],)]


# Redis


@on_redis
@committed
def test_redis_tells_of_a_commit_at_once(now, ears):
    ears.append(nudge.listen())
    assert isinstance(ears[0], nudge.RedisEar)
    assert ears[0].poll_s == 0.5
    ears[0].poll_s = 3
    # Subscribes, and hears that it did.
    ears[0].wait()
    assert delay_of_nudge(ears[0], now) < AT_ONCE_S


@on_redis
def test_redis_is_waited_for_no_longer_than_the_poll(ears):
    ears.append(nudge.RedisEar())
    ears[0].wait()
    assert 0.45 <= heard(ears[0]) < 1.5


def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_dead_redis_fails_no_verb(settings, forget_redis, caplog):
    settings.REDIS_URL = f"redis://127.0.0.1:{dead_port()}/0"
    begun = time.monotonic()
    nudge.after_commit()
    assert time.monotonic() - begun < 2 * nudge.REDIS_TIMEOUT_S
    assert "nudge not sent" in caplog.text


def test_a_redis_that_does_not_answer_holds_up_no_verb(settings, forget_redis, caplog):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        settings.REDIS_URL = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        begun = time.monotonic()
        nudge.after_commit()
        assert time.monotonic() - begun < 3 * nudge.REDIS_TIMEOUT_S
    assert "nudge not sent" in caplog.text


def test_while_redis_is_away_the_ear_polls(settings, ears, caplog):
    settings.REDIS_URL = f"redis://127.0.0.1:{dead_port()}/0"
    ears.append(nudge.listen())
    ears[0].poll_s = 0.05
    for _ in range(2):
        assert 0.05 <= heard(ears[0]) < 1
    assert "polling" in caplog.text


@on_redis
@committed
def test_the_ear_hears_again_once_redis_is_back(now, settings, ears):
    live = settings.REDIS_URL
    settings.REDIS_URL = f"redis://127.0.0.1:{dead_port()}/0"
    ear = nudge.RedisEar()
    ears.append(ear)
    ear.poll_s = 0.05
    ear.wait()
    settings.REDIS_URL = live
    ear._client = nudge.RedisEar()._client
    ear.poll_s = 3
    ear.wait()
    assert delay_of_nudge(ear, now) < AT_ONCE_S
