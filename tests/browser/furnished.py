"""An `up --demo` with something of everything: services, tasks, a rollback, a subscription."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from tests.running import Up, free_port, wait_for

# What an `up` that is furnished has to know: notices go to a server of its own.
ENV = {"ANDON_WEBHOOK_HOSTS": "127.0.0.1"}


def furnish(up: Up, *, within_s: float = 60) -> dict[str, Any]:
    """Make it so through REST, and return what the addresses of its pages hold (tests/browser/pages.py)."""
    port = free_port()
    web = _spec("web", port, "-u", "-m", "http.server", str(port), restart="on-failure", ttl_minutes=240)
    broken = _spec("api", 0, "-c", "exit('no database at 127.0.0.1:5433')", restart="never")
    for spec in (web, broken):
        up.post("/api/managed-processes?project=greenhouse", {"specs": [spec]})
    up.post("/api/ralph/birdsong/rollback", {})
    notice = up.post("/api/kanban/subscriptions", {"address": f"http://127.0.0.1:{port}/", "kind": "service."})
    done = _task(up, "Label the seed trays", "demo: steps 2 every 0.2", assignee="demo", project="greenhouse")
    blocked = _task(up, "Choose the soil", "demo: block Peat or coir? Both are in the shed.", assignee="demo")
    _task(up, "Water twice a day", "In **summer** only.", assignee="demo", parents=[blocked], priority=3)
    _task(up, "Count the birds at dawn", "Needs somebody who knows them.", triage=True)
    _task(up, "Repair the north window", "", project="greenhouse", priority=5)
    for event in ("submitted", "worker_started"):
        up.post("/api/journal/sessions/morning/events", {"event": event, "turn_id": "t1", "content": "Mend the gate"})
    wait_for(lambda: _status(up, done) == "done" and _status(up, blocked) == "blocked", within_s, 0.3)
    rollback = wait_for(lambda: up.events("rollback."), within_s)[0]["payload"]["rollback"]
    story = wait_for(lambda: up.events("story."), within_s)[0]["id"]
    return {
        "event": story,
        "rollback": rollback,
        # The demonstration's loop is the first process, the token that reads the API the first token.
        "process": 1,
        "token": 1,
        "session": "morning",
        "notice": notice["subscription"]["id"],
        "task": done,
        "blocked": blocked,
        "run": up.get(f"/api/kanban/tasks/{done}")["runs"][0]["id"],
    }


def remains(up: Up) -> list[int]:
    """Return what this `up` has started and still runs: it carries its node's name."""
    found = []
    marker = f"ANDON_SERVICE={up.env['ANDON_NODE']}.".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def end(up: Up) -> None:
    """End what outlives an `up`; only once its worker is gone, which would start it again."""
    for process in remains(up):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _spec(name: str, port: int, *args: str, **options: Any) -> dict[str, Any]:
    check = {"type": "tcp", "port": port or free_port(), "timeout_s": 30}
    ports = {"ports": [port]} if port else {}
    return {"name": name, "cmd": "python3", "args": list(args), "healthcheck": check, **ports, **options}


def _task(up: Up, title: str, body: str, **options: Any) -> str:
    task: str = up.post("/api/kanban/tasks", {"title": title, "body": body, **options})["task"]["id"]
    return task


def _status(up: Up, task: str) -> str:
    status: str = up.get(f"/api/kanban/tasks/{task}")["task"]["status"]
    return status
