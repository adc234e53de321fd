"""Gives orders to Andon as its doors do, in a process of its own: JSON lines in, JSON lines out, many at once.

A request is `{"id", "ask", **arguments}`, its answer `{"id", "is"}`, or `{"id", "error", "detail"}` for a refusal.
Each is served in a thread of its own, as by a web process.
"""

import json
import sys
import threading
import traceback
from datetime import datetime
from typing import Any

import django
from django.core.management import call_command
from django.db import close_old_connections
from django.utils import timezone

django.setup()

from projects.errors import DomainError  # noqa: E402
from projects.events import By  # noqa: E402
from projects.models import Event, Project  # noqa: E402
from services import lifecycle, orders, queries, rules, specs  # noqa: E402
from services.models import ManagedProcess, WorkerHost  # noqa: E402

BY = By("a-test", "api")
MOMENTS = ("expires_at", "warn_at", "health_by", "retry_at", "missing_since", "since")
answering = threading.Lock()


def find(project: str, name: str) -> ManagedProcess:
    return queries.by_name(name, project=project)


def shown(row: ManagedProcess) -> dict[str, Any]:
    fields = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
    return fields | {"marker": row.marker, "log_name": row.log_name}


def migrate() -> None:
    call_command("migrate", verbosity=0, interactive=False)


def worker() -> dict[str, Any] | None:
    host = WorkerHost.objects.first()
    return host and {"pid": host.pid, "status": host.status, "jobs": host.jobs}


def projects() -> list[str]:
    return list(Project.objects.filter(missing_since=None).values_list("slug", flat=True))


def declare(project: str, specs_: list[dict[str, Any]], wi: str = "", agent: str = "") -> dict[str, Any]:
    row = Project.objects.get(slug=project)
    found = specs.validate(json.dumps({"specs": specs_}), rules.limits(row), rules.system())
    if isinstance(found, specs.Invalid):
        raise ValueError(found.reason)
    placed = orders.declare(row, found.specs, agent=agent, wi=wi, by=BY)
    return {"rows": [shown(each) for each in placed.rows], "warnings": placed.warnings}


def start(project: str, name: str) -> dict[str, Any]:
    return shown(orders.start(find(project, name), by=BY))


def restart(project: str, name: str) -> dict[str, Any]:
    return shown(orders.restart(find(project, name), by=BY))


def stop(project: str, name: str, at_once: bool = False) -> dict[str, Any]:
    return shown(orders.stop(find(project, name), at_once=at_once, by=BY).row)


def extend(project: str, name: str, minutes: int) -> dict[str, Any]:
    return shown(lifecycle.extend(find(project, name), minutes, by=BY, now=timezone.now()))


def rows(project: str = "") -> list[dict[str, Any]]:
    return [shown(row) for row in queries.processes(purpose="all", project=project)]


def row(project: str, name: str) -> dict[str, Any]:
    return shown(find(project, name))


def events(subject: str = "", since: int = 0) -> list[dict[str, Any]]:
    found = Event.objects.filter(subject__startswith=subject, id__gt=since).order_by("id")
    return list(found.values("id", "at", "kind", "subject", "payload"))


def update(pk: int, **fields: Any) -> int:
    """Write into a row behind Andon's back."""
    return ManagedProcess.objects.filter(pk=pk).update(**_moments(fields))


def update_project(slug: str, **fields: Any) -> int:
    return Project.objects.filter(slug=slug).update(**_moments(fields))


def _moments(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: datetime.fromisoformat(value) if name in MOMENTS else value for name, value in fields.items()}


VERBS = {
    each.__name__: each
    for each in (
        *(migrate, worker, projects, declare, start, restart, stop, extend),
        *(rows, row, events, update, update_project),
    )
}


def serve(asked: dict[str, Any]) -> None:
    number, verb = asked.pop("id"), asked.pop("ask")
    answer: dict[str, Any]
    try:
        answer = {"is": VERBS[verb](**asked)}
    except DomainError as refusal:
        answer = {"error": refusal.code, "detail": refusal.detail}
    except ValueError as refusal:
        answer = {"error": "invalid", "detail": str(refusal)}
    except Exception as error:
        answer = {"error": "broken", "detail": f"{error}\n{traceback.format_exc()}"}
    finally:
        close_old_connections()
    line = json.dumps({"id": number, **answer}, default=_plain)
    with answering:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


if __name__ == "__main__":
    for line in sys.stdin:
        threading.Thread(target=serve, args=(json.loads(line),), daemon=True).start()
