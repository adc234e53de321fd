"""The board at 10,000 tasks beside a plain FastAPI over sqlite3 with the same tasks, in the same run."""

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks import seeding
from tests.benchmarks.table import Table

ROUNDS = 15
CREATED = 60
CLIENTS = 8
KNOWN = "t_00000005"


def board(table: Table) -> None:
    """A full board, 100 a column, unchanged; one task, new tasks, a dry pass, an event at a socket."""
    from tests.running import running

    with tempfile.TemporaryDirectory() as folder:
        # Nothing may be claimed while reads are measured.
        with running(Path(folder), env={"ANDON_DISPATCH": "off"}) as up:
            env = {**up.env, "DJANGO_SETTINGS_MODULE": "config.settings"}
            subprocess.run([sys.executable, "-m", "tests.benchmarks.seeding"], env=env, check=True)
            head = {"Authorization": f"Bearer {up.token()}"}
            socket = f"ws://127.0.0.1:{up.port}/api/kanban/events?since={{}}&token={up.token()}"
            ours = measured(up.port, "/api/kanban", head, socket)
        with _plain(Path(folder)) as port:
            theirs = measured(port, "", {}, f"ws://127.0.0.1:{port}/events?since={{}}")
    for key, what, must in (
        ("full", f"GET /board, 10,000 tasks, {ours['bytes'] / 1e6:.1f} MB", "p50 at most 1/6"),
        ("fresh", "  asked for with another limit each time", ""),
        ("limited", "GET /board?limit=100", "<= 25 ms"),
        ("unchanged", "GET /board, unchanged (304)", "<= 5 ms"),
        ("detail", "GET /tasks/{id}", ""),
        ("create", "POST /tasks, 1 client", ""),
        ("creates", f"POST /tasks, {CLIENTS} clients", ""),
        ("dispatch", "POST /dispatch, dry, 1,000 ready", ""),
        ("frame", "POST /tasks -> frame at a socket", ""),
    ):
        mine, other = ours.get(key), theirs.get(key)
        beside = f"; plain {_shown(other)}, ours / plain = {_p50(mine) / _p50(other):.2f}" if other else ""
        table.row(what, _shown(mine), f"{must}{beside}".lstrip("; "))


def measured(port: int, prefix: str, head: dict[str, str], socket: str) -> dict[str, Any]:
    """Return times in ms of one server, a list for each thing that it can do."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(method: str, path: str, body: Any = None, on: Any = line, **more: str) -> tuple[Any, bytes]:
        raw = None if body is None else json.dumps(body)
        on.request(method, prefix + path, raw, {**head, "Content-Type": "application/json", **more})
        answer = on.getresponse()
        content = answer.read()
        assert answer.status in {200, 304}, content[:300]
        return answer, content

    def created(on: Any = line) -> None:
        ask("POST", "/tasks", {"title": "Mend it", "assignee": "nobody"}, on)

    fresh = itertools.count()
    answer, content = ask("GET", "/board")
    latest = json.loads(content)["latest_event_id"]
    found: dict[str, Any] = {
        "bytes": len(content),
        "full": _times(lambda: ask("GET", "/board"), ROUNDS),
        # Another validator each time: nothing of it can have been kept.
        "fresh": _times(lambda: ask("GET", f"/board?limit={10_000 - next(fresh)}"), ROUNDS),
        "limited": _times(lambda: ask("GET", "/board?limit=100"), ROUNDS * 2),
        "detail": _times(lambda: ask("GET", f"/tasks/{KNOWN}"), ROUNDS * 4),
        "dispatch": _times(lambda: ask("POST", "/dispatch?dry_run=true&max=8"), ROUNDS),
    }
    if etag := answer.headers.get("ETag"):
        found["unchanged"] = _times(lambda: ask("GET", "/board", **{"If-None-Match": etag}), ROUNDS * 4)
    found["frame"] = asyncio.run(_frames(socket.format(latest), created))
    found["create"] = _times(created, CREATED)

    def client() -> list[float]:
        own = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        return _times(lambda: created(own), CREATED)

    with ThreadPoolExecutor(CLIENTS) as pool:
        begun = [pool.submit(client) for _ in range(CLIENTS)]
        found["creates"] = [each for one in begun for each in one.result()]
    return found


async def _frames(address: str, created: Callable[[], None]) -> list[float]:
    import websockets

    times = []
    async with websockets.connect(address, max_size=None) as socket:
        await asyncio.sleep(0.5)
        for _ in range(ROUNDS * 2):
            started = time.perf_counter()
            await asyncio.gather(asyncio.to_thread(created), socket.recv())
            times.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.05)
    return times


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[int]:
    from tests.running import free_port, wait_for

    path, port = folder / "plain.sqlite3", free_port()
    _fill_plain(path)
    words = [sys.executable, "-m", "tests.benchmarks.plain_board", str(path), str(port)]
    process = subprocess.Popen(words, env=dict(os.environ))

    def is_up() -> bool:
        with contextlib.suppress(OSError):
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            line.request("GET", "/tasks/none")
            return line.getresponse().status == 404
        return False

    try:
        wait_for(is_up, 30)
        yield port
    finally:
        process.terminate()
        process.wait()


def _fill_plain(path: Path) -> None:
    from tests.benchmarks.plain_board import SCHEMA

    now = datetime.now(UTC)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(SCHEMA)
        for row in seeding.tasks(now):
            values = {key: int(v.timestamp()) if isinstance(v, datetime) else (v or None) for key, v in row.items()}
            values["priority"] = row["priority"]
            names = ", ".join(values)
            database.execute(
                f"INSERT INTO tasks({names}) VALUES ({', '.join('?' * len(values))})", list(values.values())
            )
        pairs = [(seeding.name(parent), seeding.name(child)) for parent, child in seeding.pairs()]
        database.executemany("INSERT INTO links VALUES (?, ?)", pairs)
        moment = int(now.timestamp())
        database.executemany(
            "INSERT INTO events(task_id, kind, payload, created_at) VALUES (?, ?, ?, ?)",
            [(task, kind.removeprefix("task."), '{"via": "api"}', moment) for task, kind in seeding.events()],
        )
        database.executemany(
            "INSERT INTO comments(task_id, author, body, created_at) VALUES (?, 'anna', 'Look again, please.', ?)",
            [(task, moment) for task in seeding.commented()],
        )


def _times(work: Callable[[], object], count: int) -> list[float]:
    found = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        found.append((time.perf_counter() - started) * 1000)
    return found


def _p50(times: list[float]) -> float:
    return statistics.median(times)


def _shown(times: list[float]) -> str:
    return f"p50 {_p50(times):.1f} ms, p99 {sorted(times)[int(len(times) * 0.99)]:.1f}"
