"""What healthchecks cost: 1,000 services at 100 probes a second, beside http.client in a pool of 16 threads."""

import asyncio
import http.client
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from services.probes import Check, Prober, Result
from tests.benchmarks.table import Table

SERVICES = 1000
SECONDS = 10
SERVERS = 4
DEADLINE_S = 5.0

Ask = Callable[[int, Callable[[bool, float], None]], object]
"""Probe the service of this number, and call back with ok and the milliseconds it took."""


def probes(table: Table) -> None:
    """1,000 services probed each 10 s: CPU of this process, driver included; the servers run in another one."""
    with servers() as ports, prober() as ours, ThreadPoolExecutor(16) as pool:
        pages = [check(type="http", url=f"http://127.0.0.1:{port}/health", expect_status=200) for port in ports]
        spent, times = drive(by(ours, pages))
        row(table, "http, 1,000 services each 10 s", spent, times, "<= 10 % of a core, aim 0.3 ms each")
        naive, times = drive(lambda number, done: pool.submit(by_thread, ports[number % SERVERS], done))
        row(table, "  http.client, 16 threads", naive, times, f"ours / theirs = {spent / naive:.2f}")
        spent, times = drive(by(ours, [check(type="tcp", port=port) for port in ports]))
        row(table, "tcp, 1,000 services each 10 s", spent, times, "<= 10 % of a core")
        echo = check(type="command", cmd="/bin/echo ok", shell=False, expect_regex="^ok$")
        spent, times = drive(by(ours, [echo]))
        row(table, "command, 1,000 services each 10 s", spent, times, "(the program's own CPU not counted)")
    started = time.process_time()
    for number in range(SERVICES):
        check(type="http", url=f"http://127.0.0.1:{number + 1}/health", expect_status=200)
    table.row("1,000 checks made of their specs", f"{(time.process_time() - started) * 1000:.0f} ms", "")


def row(table: Table, what: str, spent: float, times: list[float], must: str) -> None:
    ordered = sorted(times)
    p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    cost = f"{spent / SECONDS * 100:.1f} % of a core, {spent / len(times) * 1000:.2f} ms each"
    table.row(what, f"{cost}; answered in p50 {p50:.1f} ms, p99 {p99:.1f} ms", must)


def check(**fields: object) -> Check:
    times = {"timeout_s": 5, "interval_s": 1, "period_s": 10, "failure_threshold": 3, "success_threshold": 1}
    return Check.from_spec({**times, **fields}, cwd="/", env={"PATH": "/usr/bin:/bin"}, hosts=frozenset())


def drive(ask: Ask) -> tuple[float, list[float]]:
    """Probe 1,000 services once within 10 s, ten at a time; return CPU seconds and the milliseconds of each."""
    times: list[float] = []
    all_heard = threading.Event()

    def done(ok: bool, took_ms: float) -> None:
        assert ok
        times.append(took_ms)
        if len(times) == SERVICES:
            all_heard.set()

    started, spent = time.monotonic(), time.process_time()
    for number in range(SERVICES):
        if number % 10 == 0:
            time.sleep(max(0.0, started + number * SECONDS / SERVICES - time.monotonic()))
        ask(number, done)
    assert all_heard.wait(DEADLINE_S * 2)
    return time.process_time() - spent, times


def by(ours: Prober, checks: list[Check]) -> Ask:
    def ask(number: int, done: Callable[[bool, float], None]) -> None:
        def on_result(_key: object, result: Result) -> None:
            done(result.ok, result.took_ms)

        assert ours.submit(number, checks[number % len(checks)], DEADLINE_S, on_result)

    return ask


def by_thread(port: int, done: Callable[[bool, float], None]) -> None:
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        answer = connection.getresponse()
        answer.read(65536)
        done(answer.status == 200, (time.monotonic() - started) * 1000)
    finally:
        connection.close()


@contextmanager
def prober() -> Iterator[Prober]:
    made = Prober()
    made.start()
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def servers() -> Iterator[list[int]]:
    """Run small web servers in a process of their own; gives their ports."""
    command = [sys.executable, "-m", "tests.benchmarks.probes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield [int(process.stdout.readline()) for _ in range(SERVERS)]
        finally:
            process.kill()


async def serve() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A tcp probe asks nothing.
        if await reader.readline():
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()

    started = [await asyncio.start_server(answer, "127.0.0.1", 0) for _ in range(SERVERS)]
    for server in started:
        print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
