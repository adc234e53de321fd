"""Eight claimers over 5,000 tasks, on both databases; see `python -m tests.benchmarks claims`."""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.benchmarks.table import Table

ROOT = Path(__file__).resolve().parents[2]
TASKS = 5000
CLAIMERS = 8
SERVER = os.environ.get("ANDON_TEST_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres")
DATABASE = "andon_bench_claims"


def claims(table: Table) -> None:
    """8 processes claim 5,000 tasks by the real verb: how many a second, and how many twice."""
    import psycopg

    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"DROP DATABASE IF EXISTS {DATABASE}")
        server.execute(f"CREATE DATABASE {DATABASE}")
        for name, env in (("SQLite", {}), ("PostgreSQL", {"DATABASE_URL": f"{SERVER.rpartition('/')[0]}/{DATABASE}"})):
            with tempfile.TemporaryDirectory() as home:
                taken_s, twice = _race({"ANDON_HOME": home, "ANDON_WORKSPACE": home, **env})
            table.row(
                f"{CLAIMERS} claimers, {TASKS} tasks, {name}", f"{TASKS / taken_s:.0f}/s, {twice} twice", "0 twice"
            )
        server.execute(f"DROP DATABASE {DATABASE}")


def _race(env: dict[str, str]) -> tuple[float, int]:
    inherited = {
        name: text for name, text in os.environ.items() if not name.startswith(("ANDON_", "DATABASE", "REDIS"))
    }
    about = {"cwd": ROOT, "env": {**inherited, "DJANGO_SETTINGS_MODULE": "config.settings", **env}, "text": True}
    start = [sys.executable, "-m", "tests.benchmarks.claims"]
    subprocess.run([*start, "seed"], check=True, **about)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    claimers = [subprocess.Popen([*start, f"c{n}"], **pipes, **about) for n in range(CLAIMERS)]
    for claimer in claimers:
        claimer.stdout.readline()
    began = time.monotonic()
    for claimer in claimers:
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    won = Counter(word for claimer in claimers for word in claimer.communicate()[0].split())
    taken_s = time.monotonic() - began
    assert len(won) == TASKS, len(won)
    return taken_s, sum(count - 1 for count in won.values())


def _seed() -> None:
    from django.core.management import call_command
    from django.utils import timezone

    from kanban.models import Task

    call_command("migrate", verbosity=0)
    about = dict.fromkeys(("since", "created_at", "active_at"), timezone.now())
    Task.objects.bulk_create((Task(id=f"t_{n:08x}", title="x", status="ready", **about) for n in range(TASKS)), 500)


def _claim(name: str) -> None:
    from django.db import OperationalError
    from django.utils import timezone

    from kanban import lifecycle
    from kanban.models import Task
    from projects.errors import Conflict
    from projects.events import By

    ready = Task.objects.filter(status="ready").order_by("?")
    print("ready", flush=True)
    sys.stdin.readline()
    won = []
    while found := list(ready[:16]):
        for task in found:
            try:
                lifecycle.claim(task, by=By(f"token:{name}", "api"), now=timezone.now())
            except (Conflict, OperationalError):
                # Somebody was faster, or kept SQLite's lock from this one for 20 s.
                continue
            won.append(task.pk)
    print(*won)


if __name__ == "__main__":
    import django

    django.setup()
    if sys.argv[1] == "seed":
        _seed()
    else:
        _claim(sys.argv[1])
