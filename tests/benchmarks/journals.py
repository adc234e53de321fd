"""Journals: appending beside a plain file, reading beside json.loads, importing, and what one line more costs."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.table import Table

LINES = 40_000
ROUNDS = 3
SECONDS = 3.0
WRITERS = (1, 4)
FOLDER = Path(__file__).resolve().parents[2]

OURS = """
import sys, time
from pathlib import Path
from projects import journal
until, count = time.monotonic() + float(sys.argv[2]), 0
event = {"event": "submitted", "turn_id": "t", "content": "x" * 300}
while time.monotonic() < until:
    journal.append_event(Path(sys.argv[1]), "s", event)
    count += 1
print(count)
"""
PLAIN = """
import json, os, sys, time
until, count = time.monotonic() + float(sys.argv[2]), 0
event = {"event": "submitted", "turn_id": "t", "content": "x" * 300}
while time.monotonic() < until:
    with open(sys.argv[1] + "/plain.jsonl", "a") as stream:
        stream.write(json.dumps(event) + "\\n")
        stream.flush()
        os.fsync(stream.fileno())
    count += 1
print(count)
"""


def journals(table: Table) -> None:
    """Append with 1 and 4 writers, read, import, import one line more."""
    appending(table)
    with tempfile.TemporaryDirectory() as folder:
        reading(table, Path(folder))
    importing(table)


def appending(table: Table) -> None:
    for writers in WRITERS:
        ours, plain = (_together(code, writers) for code in (OURS, PLAIN))
        who = f"{writers} writer{'s' * (writers > 1)}"
        table.row(f"append + fsync, {who}", f"{ours:,.0f} lines/s", "")
        table.row("  open, write, fsync, close", f"{plain:,.0f} lines/s", f"ours / plain = {ours / plain:.2f}")


def _together(code: str, writers: int) -> float:
    rates = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=os.environ.get("ANDON_BENCH_DIR")) as folder:
            started = [
                subprocess.Popen([sys.executable, "-c", code, folder, str(SECONDS)], cwd=FOLDER, stdout=subprocess.PIPE)
                for _ in range(writers)
            ]
            rates.append(sum(int(process.communicate()[0]) for process in started) / SECONDS)
    return statistics.median(rates)


def write(root: Path, count: int = LINES, *, session: str = "s") -> Path:
    """Write a session of `count` events of turns of four."""
    from projects import journal

    path = journal.path_of(root, session)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("submitted", "worker_started", "assistant_started", "completed")
    with path.open("w") as stream:
        for number in range(count):
            event = {
                "event": names[number % 4],
                "version": 1,
                "session_id": session,
                "turn_id": f"20260101T000000Z-{number // 4:012x}",
                "created_at": 1.7e9 + number,
                "stream_id": f"stream-{number // 4}",
            }
            if number % 4 == 0:
                event |= {"role": "user", "content": "Mend the gate, then the fence. " * 8, "model": "m"}
            stream.write(json.dumps(event) + "\n")
    return path


def reading(table: Table, root: Path) -> None:
    from projects import journal

    path = write(root)
    size = path.stat().st_size / 1e6
    ours = _median(lambda: journal.read_journal(root, "s"))
    naive = _median(lambda: [json.loads(line) for line in path.read_bytes().splitlines()])
    found = journal.read_journal(root, "s")
    derive = _median(lambda: journal.derive_states(found.events, found.numbers))
    table.row(f"read {size:.0f} MB, {LINES:,} lines", f"{size / ours:.0f} MB/s", "")
    table.row("  json.loads over splitlines", f"{size / naive:.0f} MB/s", f"ours / naive = {naive / ours:.2f}")
    table.row("derive their turns", f"{LINES / derive:,.0f} lines/s", "")


def importing(table: Table) -> None:
    from tests.benchmarks.__main__ import Database

    with Database(), tempfile.TemporaryDirectory() as folder:
        from django.conf import settings
        from django.db import connection
        from django.utils import timezone

        from projects import intake, journal
        from projects.intake.rebuilding import rebuild
        from projects.models import JournalRecord

        root = Path(folder)
        settings.ANDON_JOURNAL_ROOTS = [root]
        rates = []
        for number in range(ROUNDS):
            write(root, session=f"s-{number}")
            took = _timed(lambda: intake.rescan(now=timezone.now()))
            rates.append(LINES / took)
        assert JournalRecord.objects.count() == ROUNDS * LINES
        table.row(
            f"import, {connection.vendor}", f"{statistics.median(rates):,.0f} lines/s", ">= 20,000 lines/s on SQLite"
        )
        half = write(root, 1500, session="half")
        intake.rescan(now=timezone.now())
        times = []
        for _ in range(21):
            journal.append_event(root, "half", {"event": "submitted"})
            times.append(_timed(lambda: intake.look(intake.places.session_place(root, "half"), now=timezone.now())))
        table.row(
            f"one line more in {half.stat().st_size // 1000} KB", f"median {statistics.median(times) * 1000:.1f} ms", ""
        )
        time.sleep(0.1)
        intake.rescan(now=timezone.now())
        again = _median(lambda: intake.rescan(now=timezone.now()))
        table.row("rescan, nothing new", f"{again * 1000:.1f} ms", "")
        took = _timed(rebuild)
        table.row("rebuild_journals", f"{ROUNDS * LINES / took:,.0f} lines/s", "")


def _median(work: Callable[[], object]) -> float:
    return statistics.median(_timed(work) for _ in range(ROUNDS))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
