"""Reads over all apps: what every page shows around its content, the home page, the system page, the numbers."""

import platform
import shutil
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Any

import django
import psutil
from django.conf import settings
from django.db import connection
from django.db.models import Count, Q, Sum
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _

from config import needs, running
from kanban.models import Run
from kanban.pages import needs as work
from projects import queries as projects
from projects import sizes
from projects.models import Event, Preference, Project
from projects.relay import floor, head, relay
from projects.states import Role
from services import queries as services
from services.models import ManagedProcess, WorkerHost
from services.states import LIVE, HostStatus

RECENT_SHOWN = 10


def frame(request: HttpRequest) -> dict[str, Any]:
    """Return what base.html needs on every page; the cursor was read by the door before the page's first query."""
    identity = getattr(request, "identity", None)
    base = {"version": settings.VERSION, "theme": theme_of(request), "now": timezone.now(), "identity": identity}
    if identity is None:
        return base
    preference = preference_of(request)
    return {
        **base,
        "cursor": request.cursor,  # type: ignore[attr-defined]
        "theme": preference.theme,
        "density": preference.density,
        "shortcuts": "on" if preference.shortcuts else "off",
        # A page that has them already names them so too, and they are not asked for again.
        "hosts": SimpleLazyObject(lambda: services.hosts(timezone.now())),
        "role": str(identity.role),
        "can_operate": identity.may(Role.OPERATOR),
        "can_admin": identity.may(Role.ADMIN),
    }


def theme_of(request: HttpRequest) -> str:
    """Return the theme that the cookie asks for, for pages that nobody is signed in on."""
    theme = request.COOKIES.get("andon_theme", "")
    return theme if theme in Preference.Theme.values else Preference.Theme.SYSTEM


def preference_of(request: HttpRequest) -> Preference:
    """Return the signed-in user's preferences, the defaults when none are saved; they came with the user."""
    user = request.user if request.user.is_authenticated else None
    kept: Preference | None = getattr(user, "preference", None)
    return kept or Preference(user=user, theme=theme_of(request))


def is_ticking(now: datetime) -> bool:
    """Say whether this node's worker ticked within 15 s."""
    return _ticks(services.hosts(now))


def _ticks(hosts: list[WorkerHost]) -> bool:
    return any(host.node == settings.ANDON_NODE and host.shown == HostStatus.TICKING for host in hosts)


def home(now: datetime, *, role: Role) -> dict[str, Any]:
    """Return what needs somebody, what runs, what happened; as many queries however much there is."""
    rows = list(projects.known().filter(missing_since=None))
    hosts = services.hosts(now)
    of_work, made = work.signals(now)
    stories = needs.stories(rows, running.loops(rows))
    in_sight = running.in_sight(now, needs.SHOWN)
    spent, of_tasks = running.cost_today(now)
    runs = running.panel(rows, stories, in_sight, spent, now)
    return {
        "hosts": hosts,
        "needs": needs.urgencies(rows, hosts=hosts, of_work=of_work, stories=stories, in_sight=in_sight, now=now),
        "running": runs,
        "cost_today": sum(spent.values(), of_tasks),
        "cost_of_tasks": of_tasks,
        "events": projects.entitled(projects.events({}, limit=RECENT_SHOWN, headlines=True)),
        "checklist": checklist(rows, hosts, made, role=role),
        "totals": {
            "projects": len(rows),
            "running": runs["total"],
            "stories": sum(row.total for row in rows),
            "passed": sum(row.passed for row in rows),
            "remaining": sum(projects.remaining(row) for row in rows),
        },
    }


def checklist(rows: list[Project], hosts: list[WorkerHost], made: set[str], *, role: Role) -> list[dict[str, Any]]:
    """Return the first steps with what is done, by what is there and what was `made`; empty once all are."""
    roots = ", ".join(str(root) for root in settings.ANDON_WORKSPACE)
    steps = [
        _step(_("The worker ticks"), _ticks(hosts), _("Start it with manage.py up."), "/system/"),
        _step(
            _("A project was found"),
            bool(rows),
            _("Looked for in %s. manage.py demo makes two to try.") % roots,
            "/projects/",
        ),
        _step(
            _("A loop was seen running"),
            any(row.running or row.last_iteration_at for row in rows),
            _("manage.py loop DIR runs one, manage.py up --demo shows one."),
            "/projects/",
        ),
    ]
    steps.append(
        _step(
            _("A profile can take tasks"),
            "profile" in made,
            _("claude, codex and hermes are taken up as soon as the worker finds their programs."),
            "/kanban/profiles/",
        )
    )
    steps.append(
        _step(_("A task was made"), "task" in made, _("The empty board offers a sample in one click."), "/kanban/")
    )
    if role.includes(Role.ADMIN):
        hint = _("Make one in the settings.")
        steps.append(_step(_("A token for scripts was made"), "token" in made, hint, "/settings/"))
    return [] if all(step["done"] for step in steps) else steps


def _step(label: str, done: bool, hint: str, url: str) -> dict[str, Any]:
    return {"label": label, "done": done, "hint": hint, "url": url}


def live_streams() -> set[str]:
    """Return the names of processes and runs that live: a turn that bears one as its stream is nobody else's to end."""
    rows = ManagedProcess.objects.filter(status__in=sorted(LIVE)).values_list("project", "name", "owner_wi")
    names = {name for project, own, item in rows for name in (own, f"{project}/{own}", item) if name}
    runs = Run.objects.filter(ended_at=None).only("task_id", "number")
    return names.union(*({run.task_id, str(run), run.agent} for run in runs))


def facts(newest: int) -> list[dict[str, Any]]:
    """Return what /system/ tells about this installation, by group; sizes in bytes. `newest` = the last event."""
    disk = shutil.disk_usage(settings.ANDON_HOME)
    process = psutil.Process()
    return [
        {
            "group": _("Database"),
            "rows": [
                (_("Engine"), _engine()),
                (_("Size"), _bytes(_database_size())),
                (_("Events"), f"{_counted_events():,}"),
                (_("Log kept from / to"), f"{floor() + 1:,} / {newest:,}"),
            ],
        },
        {
            "group": _("This web process"),
            "rows": [
                (_("Process"), str(process.pid)),
                (_("Memory"), _bytes(process.memory_info().rss)),
                (_("Open sockets and streams"), str(len(relay.subscriptions))),
                (_("Log read up to"), f"{relay.cursor:,}"),
            ],
        },
        {
            "group": _("Disk"),
            "rows": [
                (_("Home"), str(settings.ANDON_HOME)),
                (_("Free"), f"{_bytes(disk.free)} of {_bytes(disk.total)}"),
                (_("Logs"), _bytes(_log_bytes())),
                (_("Workspace roots"), ", ".join(str(root) for root in settings.ANDON_WORKSPACE)),
            ],
        },
        {
            "group": _("Versions"),
            "rows": [
                ("Andon", settings.VERSION),
                ("Django", django.get_version()),
                ("Python", platform.python_version()),
                (_("Queue"), "Redis" if settings.REDIS_URL else "SQLite"),
                (_("Node"), settings.ANDON_NODE),
            ],
        },
    ]


def numbers(now: datetime) -> list[tuple[str, str, list[str], list[tuple[list[str], float]]]]:
    """Return the gauges of /metrics as (name, help, label names, [(label values, number)])."""
    totals = Project.objects.filter(missing_since=None).aggregate(
        all=Count("id"),
        running=Count("id", filter=Q(running=True)),
        total=Sum("total"),
        passed=Sum("passed"),
        failed=Sum("failed"),
        blocked=Sum("blocked"),
    )
    stories = [([state], float(totals[state] or 0)) for state in ("passed", "failed", "blocked")]
    stories.append((["open"], float(totals["total"] or 0) - sum(number for _, number in stories)))
    ticks = [([host.node], (now - host.tick_at).total_seconds()) for host in services.hosts(now)]
    return [
        ("projects", "Projects found", [], [([], float(totals["all"]))]),
        ("loops_running", "Loops that run", [], [([], float(totals["running"]))]),
        ("stories", "Stories by state", ["state"], stories),
        ("services", "Services by status", ["status"], [([status], float(n)) for status, n in services.counts()]),
        ("worker_tick_age_seconds", "Seconds since a worker's last tick", ["node"], ticks),
        ("event_head", "Greatest event id", [], [([], float(head()))]),
        ("relay_cursor", "How far this web process read the event log", [], [([], float(relay.cursor))]),
        ("subscriptions", "Open sockets and streams of this web process", [], [([], float(len(relay.subscriptions)))]),
    ]


@sizes.kept(seconds=60)
def _counted_events() -> int:
    return Event.objects.count()


@sizes.kept(seconds=60)
def _log_bytes() -> int:
    return sizes.of_tree(settings.ANDON_HOME / "logs")


def _engine() -> str:
    if connection.vendor == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    return f"PostgreSQL {connection.pg_version // 10000}"  # type: ignore[attr-defined]


def _database_size() -> int:
    if connection.vendor == "sqlite":
        path = Path(str(connection.settings_dict["NAME"]))
        return sizes.of_files(path.parent.glob(path.name + "*"))
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        size: int = cursor.fetchone()[0]
        return size


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
