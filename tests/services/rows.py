"""Managed processes in every state, reached through the real verbs, and a worker that is only played."""

import itertools
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from projects.events import SWEEP, By
from projects.models import Project
from services import lifecycle, orders
from services.models import ManagedProcess, WorkerHost
from services.processes import Identity
from services.states import Purpose, Status

ANNA = By("user:anna", "page")
NODE = "test-node"
BOOT = "11111111-2222-3333-4444-555555555555"
# Beyond what a kernel gives out: nothing here is ever looked up or signalled.
PIDS = itertools.count(5_000_000)
HTTP = {
    "type": "http",
    "url": "http://127.0.0.1:3000/",
    "expect_status": 200,
    "timeout_s": 60,
    "interval_s": 1,
    "period_s": 30,
    "failure_threshold": 3,
    "success_threshold": 1,
}


def tick(now: datetime | None = None) -> WorkerHost:
    """Have a worker tick on our node."""
    worker = Identity(NODE, BOOT, next(PIDS), 1)
    WorkerHost.objects.all().delete()
    return lifecycle.enlist(worker, host_name="box", version="1", by=SWEEP, now=now or timezone.now())


def with_git(project: Project) -> Project:
    (Path(project.path) / ".git").mkdir(exist_ok=True)
    return project


def make_spec(project: Project, name: str = "web", **fields: Any) -> dict[str, Any]:
    """Return a normalized spec."""
    return {
        "name": name,
        "cmd": "node",
        "args": ["server.js"],
        "cwd": project.path,
        "env": {},
        "ports": [],
        "ttl_minutes": 240,
        "attrs": {},
        "healthcheck": HTTP,
        "restart": "never",
        "stop_grace_s": 10,
        **fields,
    }


def as_file(*specs: dict[str, Any], **root: Any) -> bytes:
    """Return a spec file as an agent would send it."""
    return json.dumps({"specs": list(specs), **root}).encode()


def declared(project: Project, name: str = "web", *, agent: str = "", wi: str = "", **fields: Any) -> ManagedProcess:
    """Reserve a service; a worker ticks from then on."""
    tick()
    spec = make_spec(project, name, **fields)
    quotas = lifecycle.Quotas()
    now = timezone.now()
    return lifecycle.declare(project, [spec], agent=agent, wi=wi, quotas=quotas, by=ANNA, now=now).rows[0]


def launched(project: Project, purpose: Purpose, name: str) -> ManagedProcess:
    tick()
    row = lifecycle.launch(
        project, name, purpose, argv=["agent", "-x"], cwd=project.path, env={"A": "b"}, by=ANNA, now=timezone.now()
    )
    return spawned(row)


def spawned(row: ManagedProcess) -> ManagedProcess:
    lifecycle.spawned(row, Identity(NODE, BOOT, next(PIDS), 7), by=SWEEP, now=timezone.now())
    return row


def healed(row: ManagedProcess) -> ManagedProcess:
    lifecycle.heal(row, next_probe_at=timezone.now() + timedelta(seconds=30), by=SWEEP, now=timezone.now())
    return row


def healthy(project: Project, name: str = "web", **fields: Any) -> ManagedProcess:
    return healed(spawned(declared(project, name, **fields)))


def failed(project: Project, name: str = "web", code: int = 3, **fields: Any) -> ManagedProcess:
    row = healthy(project, name, **fields)
    lifecycle.ended(row, code, members=[], tail="boom", jitter=0.0, by=SWEEP, now=timezone.now())
    return row


def serve(row: ManagedProcess) -> None:
    """Do what a worker would do next for a row."""
    if row.status == Status.BACKOFF:
        lifecycle.respawn(row, by=SWEEP, now=timezone.now())
    elif row.status in {Status.STOPPING, Status.RESTARTING}:
        lifecycle.settle(row, -15, by=SWEEP, now=timezone.now())
    if row.status == Status.STARTING and row.pid is None:
        spawned(row)


def play_worker(monkeypatch: pytest.MonkeyPatch, act: Any = serve) -> list[ManagedProcess]:
    """Have what orders tell a worker done at once by `act`; returns the rows it was told of."""
    told: list[ManagedProcess] = []

    def tell(rows: list[ManagedProcess]) -> None:
        for row in rows:
            told.append(row)
            act(row)

    monkeypatch.setattr(orders, "tell", tell)
    monkeypatch.setattr(orders, "STARTED_WITHIN_S", 0.1)
    monkeypatch.setattr(orders, "STOPPED_BEYOND_GRACE_S", 0.1)
    return told


def refused(response: Any, status: int, error: str) -> dict[str, Any]:
    """Assert the one shape of errors; returns the body."""
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["error"]) == (status, error), body
    assert response["Content-Type"].startswith("application/json")
    assert body["detail"]
    assert "Traceback" not in str(body["detail"])
    return body
