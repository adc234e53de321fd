"""Benchmarks, run by hand: `uv run python -m tests.benchmarks [name …]`, all by default. Prints one table."""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"

from tests.benchmarks.board import board
from tests.benchmarks.claims import claims
from tests.benchmarks.journals import journals
from tests.benchmarks.pages import pages
from tests.benchmarks.probes import probes
from tests.benchmarks.supervision import supervision
from tests.benchmarks.table import Table

SCALE_OUT = {
    "DATABASE_URL": os.environ.get("ANDON_TEST_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres"),
    "REDIS_URL": os.environ.get("ANDON_TEST_REDIS_URL", "redis://127.0.0.1:6379/9"),
}


def live(table: Table) -> None:
    """Commit -> frame at a socket of a real web process, the commit made by another process."""
    from tests.running import running

    for name, env in (
        ("embedded", {}),
        ("PostgreSQL + Redis", SCALE_OUT),
        ("PostgreSQL", {"DATABASE_URL": SCALE_OUT["DATABASE_URL"]}),
    ):
        os.environ.update(env)
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), env=env) as up:
            times = asyncio.run(_commit_to_frame(up, 300))
        for key in env:
            del os.environ[key]
        p50, p99 = _percentiles(times)
        table.row(f"commit -> frame, {name}", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", "p50 <= 15, p99 <= 80 ms embedded")


async def _writer(up) -> asyncio.subprocess.Process:
    """Start the process that commits an event for each line it is sent."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.benchmarks.writer",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**up.env, "DJANGO_SETTINGS_MODULE": "config.settings"},
    )


async def _commit_to_frame(up, count: int) -> list[float]:
    import websockets

    writer = await _writer(up)
    times = []
    address = f"ws://127.0.0.1:{up.port}/ws/events?token={up.token()}&kind=bench."
    async with websockets.connect(address) as socket:
        await socket.recv()
        for number in range(count):
            writer.stdin.write(f"{number}\n".encode())
            await writer.stdin.drain()
            while True:
                events = json.loads(await socket.recv())["events"]
                if any(event["payload"].get("n") == number for event in events):
                    arrived = time.monotonic()
                    break
            committed = float((await writer.stdout.readline()).decode())
            times.append(max(0.0, arrived - committed) * 1000)
            await asyncio.sleep(0.02)
    writer.stdin.close()
    await writer.wait()
    return times


def fanout(table: Table) -> None:
    """1,000 sockets: memory of the web process, idle CPU, and one event at all of them."""
    from tests.running import running

    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as up:
        before, after, cpu, times = asyncio.run(_fan_out(up, 1000))
    table.row("1,000 idle sockets, web process", f"{after:.0f} MB (without: {before:.0f} MB)", "< 250 MB")
    table.row("1,000 idle sockets, CPU", f"{cpu:.2f} % of a core", "< 1 %")
    table.row(
        "one event at 1,000 sockets",
        f"{max(times):.0f} ms to the last (median of 5: {statistics.median(times):.0f})",
        "< 1,000 ms",
    )


async def _fan_out(up, count: int) -> tuple[float, float, float, list[float]]:
    import psutil
    import websockets

    [pid] = up.children("web")
    web = psutil.Process(pid)
    address = f"ws://127.0.0.1:{up.port}/ws/events?token={up.token()}&kind=bench."
    up.get("/api/me")
    before = web.memory_info().rss / 1e6
    sockets = []
    for start in range(0, count, 50):
        sockets += await asyncio.gather(
            *(websockets.connect(address, ping_interval=None, open_timeout=30) for _ in range(start, start + 50))
        )
    await asyncio.gather(*(socket.recv() for socket in sockets))
    await asyncio.sleep(2)
    spent, started = sum(web.cpu_times()[:2]), time.monotonic()
    await asyncio.sleep(15)
    cpu = (sum(web.cpu_times()[:2]) - spent) / (time.monotonic() - started) * 100
    after = web.memory_info().rss / 1e6
    writer = await _writer(up)
    times = []
    for number in range(5):

        async def heard(socket, number=number) -> None:
            while not any(e["payload"].get("n") == number for e in json.loads(await socket.recv())["events"]):
                pass

        waiting = asyncio.gather(*(heard(socket) for socket in sockets))
        writer.stdin.write(f"{number}\n".encode())
        await writer.stdin.drain()
        await waiting
        arrived = time.monotonic()
        times.append((arrived - float((await writer.stdout.readline()).decode())) * 1000)
    writer.stdin.close()
    await writer.wait()
    await asyncio.gather(*(socket.close() for socket in sockets))
    return before, after, cpu, times


def imports(table: Table) -> None:
    """500 projects of 50 stories: first import, unchanged rescan, one changed file."""
    with Database(), Workspace(500, 50):
        from django.utils import timezone

        from projects import importer

        first = _timed(lambda: importer.rescan(now=timezone.now()))
        table.row("first import, 500 projects of 50 stories", f"{first:.2f} s", "< 20 s")
        again = sorted(_timed(lambda: importer.rescan(now=timezone.now())) for _ in range(7))
        table.row(
            "unchanged rescan of 500", f"median {again[3] * 1000:.0f} ms, worst {again[-1] * 1000:.0f} ms", "< 300 ms"
        )
    table.row("changed file -> event read by REST", f"{_change_to_event():.2f} s", "< 1 s")


def _change_to_event() -> float:
    from tests.projects.files import write_prd, write_project
    from tests.running import running, wait_for

    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as up:
        root = write_project(up.workspace / "garden", ("pending",))
        wait_for(lambda: up.events("project.found"), 10)
        time.sleep(1)
        times = []
        for turn in range(6):
            head = up.get("/api/events")["cursor"]
            started = time.monotonic()
            write_prd(root, "passed" if turn % 2 == 0 else "pending")
            wait_for(lambda head=head: up.events("story.", head), 5, 0.01)
            times.append(time.monotonic() - started)
            time.sleep(0.5)
    return max(times)


def status(table: Table) -> None:
    """The status document of 200 projects of 50 stories from rows, beside reading and parsing the files each time."""
    with Database(), Workspace(200, 50) as root:
        import orjson
        from django.utils import timezone

        from projects import importer, queries

        importer.rescan(now=timezone.now())
        rows = sorted(_timed(lambda: orjson.dumps(queries.snapshot(timezone.now()))) for _ in range(15))
        naive = sorted(_timed(lambda: _naive_status(root)) for _ in range(15))
    ours, theirs = rows[7] * 1000, naive[7] * 1000
    table.row("status of 200 projects of 50 stories", f"median {ours:.0f} ms", "")
    table.row("  a naive rescan of the same files", f"median {theirs:.0f} ms", f"ours / naive = {ours / theirs:.2f}")


def _naive_status(root: Path) -> str:
    """What a status endpoint without a database does: list, read, parse, add up, look at the pid and the logs."""
    found = []
    for project in sorted(root.iterdir()):
        path = project / "scripts/ralph/prd.json"
        if not path.exists():
            continue
        stories = json.loads(path.read_text())["userStories"]
        logs = project / "scripts/ralph/logs"
        found.append(
            {
                "slug": project.name,
                "running": (path.parent / ".ralph.pid").exists(),
                "storiesTotal": len(stories),
                "storiesComplete": sum(story["passes"] for story in stories),
                "lastIterAt": max((log.stat().st_mtime for log in logs.glob("iteration-*.log")), default=None),
                "stories": [{key: story.get(key) for key in ("id", "title", "passes", "failed")} for story in stories],
            }
        )
    return json.dumps({"projects": found, "count": len(found)})


class Database:
    """A migrated test database for as long as a benchmark lasts."""

    def __enter__(self) -> None:
        import django

        django.setup()
        from django.test.utils import setup_databases

        self._kept = setup_databases(verbosity=0, interactive=False)

    def __exit__(self, *_: object) -> None:
        from django.test.utils import teardown_databases

        teardown_databases(self._kept, verbosity=0)


class Workspace:
    """A workspace of `projects` with `stories` each, as the settings' only root."""

    def __init__(self, projects: int, stories: int) -> None:
        self.projects, self.stories = projects, stories

    def __enter__(self) -> Path:
        from django.conf import settings

        from tests.projects.files import write_project

        self._folder = tempfile.TemporaryDirectory()
        root = Path(self._folder.name)
        states = tuple(("passed", "pending")[number % 2] for number in range(self.stories))
        for number in range(self.projects):
            write_project(root / f"p{number:03}", states)
        settings.ANDON_WORKSPACE = [root]
        return root

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _percentiles(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


def main() -> None:
    known = {
        "live": live,
        "fanout": fanout,
        "import": imports,
        "status": status,
        "board": board,
        "journals": journals,
        "probes": probes,
        "pages": pages,
        "supervision": supervision,
        "claims": claims,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", choices=[*known, []], help="default: all")
    chosen = parser.parse_args().which or list(known)
    import django

    django.setup()
    table = Table()
    for name in chosen:
        print(f"{name}: {known[name].__doc__.splitlines()[0]}", file=sys.stderr)
        known[name](table)
    table.print()


if __name__ == "__main__":
    main()
