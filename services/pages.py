"""Managed processes as pages show them: their rows and what is derived from them and `now`."""

import shlex
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Case, Count, F, Q, QuerySet, Value, When, Window
from django.db.models.functions import RowNumber
from django.urls import reverse
from django.utils.dateparse import parse_datetime
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from projects.errors import Missing
from services import charts
from services.models import ManagedProcess
from services.queries import HEAVY, processes, shown_args
from services.states import ENDED, LIVE, UP, Cause, Purpose, Status

OF_PROJECT_SHOWN = 20
LIST_LEFT_OUT = (*HEAVY, "args", "attrs", "healthcheck", "crashes", "left")
CAUSES = {
    "": gettext_lazy("ended by itself"),
    Cause.CRASH: gettext_lazy("crashed"),
    Cause.PROBE: gettext_lazy("missed its health check"),
    Cause.USER: gettext_lazy("stopped by a person"),
    Cause.TTL: gettext_lazy("its time was over"),
    Cause.SHUTDOWN: gettext_lazy("Andon was shut down"),
    Cause.REPLACED: gettext_lazy("replaced by another declaration"),
    Cause.PROJECT_REMOVED: gettext_lazy("its project was removed"),
    Cause.UNOBSERVED: gettext_lazy("nobody saw how it ended"),
}


@dataclass(frozen=True, slots=True)
class Verb:
    """One button: `asks` when a page asks first; `url` where it is posted, or asked."""

    name: str
    label: str
    url: str
    asks: bool = False
    danger: bool = False


def get_service(project: str, name: str) -> ManagedProcess:
    """Return a service for its page; Missing when there is none."""
    row = ManagedProcess.objects.filter(project=project, name=name, purpose=Purpose.SERVICE).first()
    if row is None:
        raise Missing("not-found", f"{project[:80]} has no service {name[:80]}.")
    return row


def get_process(pk: int) -> ManagedProcess:
    """Return a process of any purpose by its number; Missing when there is none."""
    row = ManagedProcess.objects.filter(pk=pk).first() if pk < 1 << 31 else None
    if row is None:
        raise Missing("not-found", "There is no such process.")
    return row


def found(*, purpose: str, project: str = "", status: str = "", text: str = "") -> QuerySet[ManagedProcess]:
    """Return what a list shows, by project and name, without heavy columns; an unknown filter finds nothing."""
    rows = processes(purpose=purpose, project=project).defer(*LIST_LEFT_OUT).order_by("project", "name", "id")
    if status:
        rows = rows.filter(status=status)
    if text:
        rows = rows.filter(Q(name__icontains=text) | Q(cmd__icontains=text) | Q(owner_wi__icontains=text))
    return rows


def tally(purpose: str) -> dict[str, dict[str, int]]:
    """Return how many processes of a purpose each project has by status; one query."""
    rows = processes(purpose=purpose).order_by("project").values_list("project", "status").annotate(Count("id"))
    counted: dict[str, dict[str, int]] = {}
    for project, status, number in rows:
        counted.setdefault(project, {})[status] = number
    return counted


def by_node() -> list[dict[str, Any]]:
    """Return how many processes each node has by purpose and status: {node, total, rows: [{…}]}; one query."""
    order = {str(status): place for place, status in enumerate(Status)}
    rows = ManagedProcess.objects.order_by().values("node", "purpose", "status").annotate(number=Count("id"))
    nodes: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["node"], row["purpose"], order.get(row["status"], 99))):
        nodes.setdefault(row["node"], []).append(dict(row))
    return [{"node": node, "total": sum(row["number"] for row in each), "rows": each} for node, each in nodes.items()]


def of_project(slug: str) -> list[ManagedProcess]:
    """Return a project's services for a short list, one more than it shows when there are more."""
    return list(found(purpose=Purpose.SERVICE, project=slug)[: OF_PROJECT_SHOWN + 1])


def in_sight(now: datetime, limit: int, **beside: Any) -> list[ManagedProcess]:
    """Return services that need somebody and what lives beside loops, the newest first; one query.

    At most `limit` of each severity and of each purpose; `beside` are further annotations. Each row has `severity`
    ("" = needs nobody), `alike`: how many there are of that, `lives`, and `living`: how many of its purpose do.
    """
    broken = Q(status__in=[Status.FAILED, Status.UNHEALTHY, Status.CRASH_LOOP, Status.LOST])
    expiring = Q(status__in=sorted(UP), expires_at__lte=now + timedelta(minutes=5))
    stuck = Q(status=Status.STOPPING) & ~Q(left=[])
    is_service, is_worker = Q(purpose=Purpose.SERVICE), Q(purpose=Purpose.WORKER)
    is_live = Q(status__in=sorted(LIVE))
    severity = Case(
        When(~is_service, then=Value("")),
        When(status=Status.CRASH_LOOP, then=Value("special")),
        When(Q(status__in=[Status.FAILED, Status.LOST]) | stuck, then=Value("bad")),
        When(broken | expiring, then=Value("warn")),
        default=Value(""),
    )
    rows = ManagedProcess.objects.filter(is_service & (broken | expiring | stuck) | (is_service | is_worker) & is_live)
    newest = F("since").desc()
    judged = rows.defer(*(set(LIST_LEFT_OUT) - {"left"})).annotate(
        severity=severity, lives=Case(When(is_live, then=Value(1)), default=Value(0)), **beside
    )
    placed = judged.annotate(
        alike=Window(Count("pk"), partition_by=["severity"]),
        place=Window(RowNumber(), partition_by=["severity"], order_by=newest),
        living=Window(Count("pk"), partition_by=["purpose", "lives"]),
        live_place=Window(RowNumber(), partition_by=["purpose", "lives"], order_by=newest),
    )
    wanted = Q(severity__gt="", place__lte=limit) | Q(lives=1, live_place__lte=limit)
    return list(placed.filter(wanted).order_by("-since", "pk"))


def exit_words(code: int | None) -> str:
    """Return an exit code as people read it: a number, or the signal's name."""
    if code is None:
        return _("not known")
    if code >= 0:
        return str(code)
    try:
        return signal.Signals(-code).name
    except ValueError:
        return _("signal %d") % -code


def command_line(row: ManagedProcess) -> str:
    words = [str(arg) for arg in shown_args(row)]
    return f"{shlex.quote(row.cmd)} …" if words == ["…"] else shlex.join([row.cmd, *words])


class ProcessView:
    """A managed process as its page shows it."""

    def __init__(self, row: ManagedProcess, now: datetime) -> None:
        self._row = row
        self._now = now
        self.url = row.get_absolute_url()
        self.command = command_line(row)
        self.env_keys = sorted(row.env)
        self.reason, _line, self.tail = row.last_error.partition("\n")
        self.is_up = row.status in UP and row.pid is not None
        self.is_service = row.purpose == Purpose.SERVICE
        self.cause = str(CAUSES.get(row.exit_cause, row.exit_cause)) if row.status in ENDED else ""
        self.exited_with = exit_words(row.exit_code) if row.exit_code is not None else ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)

    @property
    def log_url(self) -> str:
        """Where its log is followed as it grows."""
        if self.is_service:
            query = urlencode({"project": self._row.project})
            return f"/api/managed-processes/log-stream/{self._row.name}?{query}"
        return f"{self.url}log-stream"

    @property
    def verbs(self) -> list[Verb]:
        """What can be done with it now, the mildest first."""
        status, is_service = self._row.status, self.is_service
        names: list[str] = []
        if status in ENDED:
            names = ["start", "erase"] if is_service else ["erase"]
        elif status == Status.BACKOFF:
            names = ["start", "stop"]
        elif status == Status.STOPPING:
            names = ["kill"]
        elif status == Status.RESTARTING or not is_service:
            names = ["stop", "kill"]
        else:
            names = ["restart", "stop", "kill"]
        return [verb(self._row, name) for name in names]

    @property
    def extensions(self) -> list[dict[str, Any]]:
        if self._row.expires_at is None or self._row.status not in LIVE - {Status.STOPPING}:
            return []
        return [{"url": f"{self.url}extend/?minutes={hours * 60}", "label": _("+%d h") % hours} for hours in (1, 4)]

    @property
    def ttl(self) -> dict[str, Any] | None:
        """How much of its time is left: {left, whole} in seconds, and whether it ends within five minutes."""
        if self._row.expires_at is None:
            return None
        left = max(0, int((self._row.expires_at - self._now).total_seconds()))
        whole = max(left, 60 * (self._row.ttl_minutes or 1))
        return {"left": left, "whole": whole, "soon": left <= 300}

    @property
    def check(self) -> str:
        """Its health check in one line."""
        spec = self._row.healthcheck
        match spec.get("type"):
            case "http":
                return f"GET {spec.get('url')} → {spec.get('expect_status')}"
            case "tcp":
                return str(_("port %s accepts connections") % spec.get("port"))
            case "command":
                words = shlex.join(str(arg) for arg in spec.get("args") or [])
                return " ".join(filter(None, (str(spec.get("cmd")), words))) + f" → /{spec.get('expect_regex')}/"
        return ""

    @cached_property
    def probes(self) -> charts.Strip | None:
        return charts.strip(self._row.strip)

    @cached_property
    def load(self) -> charts.Usage | None:
        return charts.usage(self._row.usage)

    @property
    def ends(self) -> list[dict[str, Any]]:
        """Its last ends, newest first."""
        return [
            {
                "at": parse_datetime(str(end.get("at", ""))),
                "generation": end.get("generation"),
                "code": exit_words(end.get("code")),
                "cause": str(CAUSES.get(end.get("cause") or "", end.get("cause"))),
                "up_s": end.get("up_s") or 0,
            }
            for end in self._row.exits
        ]


def verb(row: ManagedProcess, name: str) -> Verb:
    """Return the button of a verb for a process."""
    url = f"{row.get_absolute_url()}{name}/"
    match name:
        case "start":
            return Verb(name, _("Try now") if row.status == Status.BACKOFF else _("Start"), url)
        case "extend":
            return Verb(name, _("+1 h"), f"{url}?minutes=60")
        case "restart":
            return Verb(name, _("Restart"), url, asks=True)
        case "stop":
            return Verb(name, _("Stop"), url, asks=True)
        case "kill":
            return Verb(name, _("Kill"), url, asks=True, danger=True)
        case _:
            return Verb(name, _("Forget"), url, asks=True, danger=True)


def listed(rows: Iterable[ManagedProcess], now: datetime) -> list[dict[str, Any]]:
    """Return rows of a list with where each leads and whether its time is nearly over."""
    soon = now + timedelta(minutes=5)
    return [
        {
            "row": row,
            "url": row.get_absolute_url(),
            "is_expiring": row.expires_at is not None and row.status in UP and row.expires_at <= soon,
            "reason": row.last_error.partition("\n")[0],
        }
        for row in rows
    ]


def need(row: ManagedProcess, now: datetime) -> dict[str, Any]:
    """Return why a service `in_sight` needs somebody, with its remedy: {severity, title, reason, at, verb}."""
    reason = row.last_error.partition("\n")[0][:300]
    match row.status:
        case Status.CRASH_LOOP:
            said = (
                "special",
                _("%s crashes again and again"),
                reason or _("Nothing more is tried by itself."),
                "start",
            )
        case Status.FAILED:
            said = ("bad", _("%s has failed"), reason or exit_words(row.exit_code), "start")
        case Status.LOST:
            said = ("bad", _("%s is lost"), reason or _("Nobody knows what became of it."), "start")
        case Status.UNHEALTHY:
            said = ("warn", _("%s is unhealthy"), reason or _("Its health check fails."), "restart")
        case Status.STOPPING:
            left = _("Processes %s are left.") % ", ".join(str(pid) for pid in row.left[:10])
            said = ("bad", _("%s cannot be stopped"), f"{left} {reason}".strip(), "kill")
        case _:
            return {
                **_need(row, "warn", _("%s expires soon") % row, _("Then it is stopped."), "extend"),
                "at": row.expires_at,
            }
    severity, title, why, name = said
    return _need(row, severity, title % row, why, name)


def _need(row: ManagedProcess, severity: str, title: str, reason: str, name: str) -> dict[str, Any]:
    return {
        "severity": severity,
        "mark": row.status if severity != "warn" or row.status == Status.UNHEALTHY else "expired",
        "title": title,
        "reason": reason,
        "url": row.get_absolute_url(),
        "at": row.since,
        "verb": verb(row, name),
        "row": row,
    }


def list_url(**filters: str) -> str:
    """Return the address of the list with filters."""
    query = urlencode({name: value for name, value in filters.items() if value})
    return reverse("services") + (f"?{query}" if query else "")
