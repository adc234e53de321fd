"""Andon's supervisor beside supervisord with the same children in the same run; see `python -m tests.benchmarks`."""

import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.table import Table

ROOT = Path(__file__).resolve().parents[2]
CHILDREN = 100
MANY = 1000
ROUNDS = 2
CHILD = "exec sleep 3600"


def supervision(table: Table) -> None:
    """Crash -> event and respawn, all killed at once, adoption, sweep and memory."""
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("ANDON_", "DATABASE", "REDIS"))
            },
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "ANDON_HOME": f"{folder}/home",
            "ANDON_WORKSPACE": f"{folder}/workspace",
            "ANDON_SERVICES_PER_PROJECT": "2000",
            "ANDON_SERVICES_PER_HOST": "2000",
        }
        Path(folder, "workspace/bench/.git").mkdir(parents=True)
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name], cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True
        )
        ours = json.loads(done.stdout)
        theirs = supervisord(Path(folder))
    both = [
        ("crash -> committed event / line in its log", "noticed", "p50 <= 50, p99 <= 250 ms"),
        ("crash -> respawned (Andon: back-off of 0..0.25 s within)", "respawned", ""),
    ]
    for what, key, must in both:
        beside = f"{must}; supervisord {_shown(theirs[key])}".lstrip("; ")
        table.row(f"{what}, {CHILDREN} children", _shown(ours[key]), beside)
    table.row("all killed -> all alive", f"{ours['all_s']:.2f} s", f"supervisord {theirs['all_s']:.2f} s")
    table.row(
        "memory of the supervisor",
        f"{ours['rss'] / 2**20:.0f} MiB, with {MANY} children {ours['rss_many'] / 2**20:.0f}",
        f"supervisord {theirs['rss'] / 2**20:.0f} MiB with {CHILDREN}",
    )
    table.row(
        f"kill -9 of the supervisor, {MANY} children adopted",
        f"{ours['adopted']} in {ours['adopted_s']:.2f} s, {ours['doubled']} doubled",
        f"< 1 s; supervisord: 0 of {CHILDREN} adopted, {theirs['doubled']} doubled",
    )
    table.row(f"sweep of {MANY}", f"{ours['sweep_ms']:.1f} ms processor time", "<= 50 ms")


def _shown(times: list[float]) -> str:
    cuts = statistics.quantiles(times, n=100)
    return f"p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms"


def children(pid: int) -> set[int]:
    """Return the living children of a process, of whichever thread."""
    found: set[int] = set()
    for part in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= {int(word) for word in part.read_text().split()}
        except OSError:
            continue
    return found


def until(condition: Callable[[], Any], within_s: float = 60, step_s: float = 0.0005) -> float:
    """Return how long it took until the condition held, in seconds."""
    started = time.perf_counter()
    while not condition():
        if time.perf_counter() - started > within_s:
            raise TimeoutError
        time.sleep(step_s)
    return time.perf_counter() - started


def crash(pid: int, supervisor: int, is_noticed: Callable[[], bool]) -> tuple[float, float]:
    """Kill one child and return the seconds until that is noticed, and until there is another."""
    before = children(supervisor)
    started = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    until(is_noticed)
    noticed = time.perf_counter() - started
    until(lambda: children(supervisor) - before)
    return noticed, time.perf_counter() - started


def kill_all(pids: set[int], supervisor: int) -> float:
    """Kill all children at once and return the seconds until there are as many new ones."""
    started = time.perf_counter()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(children(supervisor) - pids) >= len(pids), step_s=0.005)
    return time.perf_counter() - started


def rss(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def supervisord(folder: Path) -> dict[str, Any]:
    """Measure supervisord (of the dependency group `benchmarks`) with the same children."""
    log = folder / "supervisord.log"
    programs = "".join(
        f"[program:s{number}]\ncommand=/bin/bash -c '{CHILD}'\nautorestart=true\nstartretries=100\n"
        for number in range(CHILDREN)
    )
    config = folder / "supervisord.conf"
    config.write_text(f"[supervisord]\nnodaemon=true\nlogfile={log}\npidfile={folder}/pid\nuser=root\n{programs}")
    with running([str(Path(sys.executable).parent / "supervisord"), "-n", "-c", str(config)]) as daemon:
        until(lambda: log.exists() and log.read_text().count("entered RUNNING") >= CHILDREN)
        noticed, respawned = [], []
        for _ in range(ROUNDS):
            for pid in sorted(children(daemon.pid)):
                size = log.stat().st_size
                first, second = crash(pid, daemon.pid, lambda size=size: b"exited" in log.read_bytes()[size:])
                noticed.append(first)
                respawned.append(second)
            time.sleep(2)
        all_s = kill_all(children(daemon.pid), daemon.pid)
        time.sleep(2)
        orphans, memory = children(daemon.pid), rss(daemon.pid)
        daemon.kill()
        daemon.wait()
    alive = {pid for pid in orphans if Path(f"/proc/{pid}").exists()}
    with running([str(Path(sys.executable).parent / "supervisord"), "-n", "-c", str(config)]) as daemon:
        until(lambda: len(children(daemon.pid)) >= CHILDREN)
        doubled = len(alive)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return {"noticed": noticed, "respawned": respawned, "all_s": all_s, "rss": memory, "doubled": doubled}


@contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def main() -> None:
    """Measure Andon's worker in the home that the environment names; prints JSON."""
    import django

    django.setup()
    from django.core.management import call_command

    from services.models import ManagedProcess, WorkerHost
    from services.states import LIVE, Status

    call_command("migrate", verbosity=0)
    worker_argv = [sys.executable, str(ROOT / "manage.py"), "worker"]
    log = sqlite3.connect(Path(os.environ["ANDON_HOME"]) / "andon.sqlite3", isolation_level=None)

    def count(kind: str, since: int = 0) -> int:
        found = log.execute("SELECT count(*) FROM projects_event WHERE kind = ? AND id > ?", (kind, since)).fetchone()
        return int(found[0])

    def head() -> int:
        return int(log.execute("SELECT coalesce(max(id), 0) FROM projects_event").fetchone()[0])

    with running(worker_argv) as worker:
        until(lambda: count("project.found"), step_s=0.05)
        _declare(0, CHILDREN)
        until(lambda: ManagedProcess.objects.filter(status=Status.HEALTHY).count() == CHILDREN, step_s=0.1)
        noticed, respawned = [], []
        for _ in range(ROUNDS):
            for pid in list(ManagedProcess.objects.values_list("pid", flat=True)):
                since = head()
                first, second = crash(pid or 0, worker.pid, lambda since=since: count("service.crashed", since))
                noticed.append(first)
                respawned.append(second)
            until(lambda: ManagedProcess.objects.filter(status=Status.HEALTHY).count() == CHILDREN, step_s=0.1)
        pids = {pid for pid in ManagedProcess.objects.values_list("pid", flat=True) if pid}
        all_s = kill_all(pids, worker.pid)
        memory = rss(worker.pid)
        _declare(CHILDREN, MANY)
        until(lambda: ManagedProcess.objects.filter(status=Status.HEALTHY).count() == MANY, 300, step_s=0.5)
        memory_many = rss(worker.pid)
        worker.kill()
        worker.wait()
    before = set(ManagedProcess.objects.values_list("pid", flat=True))
    since = head()
    with running(worker_argv) as worker:
        until(lambda: count("worker.started", since), step_s=0.001)
        adopted_s = until(lambda: count("service.adopted", since) >= MANY, step_s=0.001)
        time.sleep(6)
        doubled = len(children(worker.pid))
        adopted = len(before & set(ManagedProcess.objects.values_list("pid", flat=True)))
        sweep_ms = _sweep()
        for row in ManagedProcess.objects.filter(status__in=LIVE):
            os.kill(row.pid or 0, signal.SIGKILL)
        worker.kill()
    WorkerHost.objects.all().delete()
    result = {
        "noticed": noticed,
        "respawned": respawned,
        "all_s": all_s,
        "rss": memory,
        "rss_many": memory_many,
        "adopted": adopted,
        "adopted_s": adopted_s,
        "doubled": doubled,
        "sweep_ms": sweep_ms,
    }
    print(json.dumps(result))


def _declare(first: int, end: int) -> None:
    from django.utils import timezone

    from projects.events import By
    from projects.models import Project
    from services import lifecycle, orders, rules, specs

    project = Project.objects.get(slug="bench")
    by = By("user:bench", "api")
    check = {"type": "command", "cmd": "bash", "args": ["-c", "true"], "shell": False, "expect_regex": "^"}
    for start in range(first, end, 5):
        raw = json.dumps(
            {
                "specs": [
                    {
                        "name": f"s{number}",
                        "cmd": "bash",
                        "args": ["-c", CHILD],
                        "restart": "always",
                        "healthcheck": {**check, "timeout_s": 120, "period_s": 600},
                    }
                    for number in range(start, start + 5)
                ]
            }
        )
        found = specs.validate(raw, rules.limits(project), rules.system())
        if isinstance(found, specs.Invalid):
            raise SystemExit(found.reason)
        done = lifecycle.declare(project, found.specs, quotas=rules.quotas(), by=by, now=timezone.now())
        orders.tell(done.rows[:1])


def _sweep() -> float:
    from django.conf import settings
    from django.utils import timezone

    from services import sweeps
    from services.probes import Prober
    from services.processes import Linux
    from services.supervisor import Supervisor

    supervisor = Supervisor(Linux(settings.ANDON_NODE), Prober(), born_at=timezone.now())
    times = []
    for _ in range(7):
        started = time.process_time()
        sweeps.detect_crashed(supervisor, now=timezone.now())
        times.append((time.process_time() - started) * 1000)
    return statistics.median(times)


if __name__ == "__main__":
    main()
