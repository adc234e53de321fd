"""What of the work needs a person now, with its reason and a remedy; which first steps were made. One query."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from django.db.models import Case, CharField, DateTimeField, Exists, F, IntegerField, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Cast, Substr
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from kanban.models import Board, Profile, Task
from kanban.pages.cards import STALE_AFTER
from kanban.states import HUMAN_BLOCKS, STRANDED_AFTER, BlockKind, Status, is_question
from projects.models import ApiToken, Project
from services.models import WorkerHost
from services.states import SILENT_AFTER, HostStatus

MOST = 200
LONGEST_REASON = 300
CAN_START = Q(enabled=True) | (Q(enabled=None) & ~Q(found_on=[]))


class Row(NamedTuple):
    """One line of the union; what a line has no use for is ""."""

    rank: int
    what: str
    key: str
    title: str
    status: str
    kind: str
    reason: str
    at: datetime | None
    since: datetime | None
    failures: int


COLUMNS = tuple(f"c_{name}" for name in Row._fields)


def _texts(**columns: Any) -> dict[str, Any]:
    """Return the columns of one part of the union, all of one type in every part."""
    found: dict[str, Any] = {}
    for name in Row._fields:
        match name:
            case "at" | "since":
                # SQLite would cast to milliseconds; of the first part's type is what has no value.
                found[f"c_{name}"] = columns.get(name, Value(None, DateTimeField()))
            case "rank" | "failures":
                found[f"c_{name}"] = Cast(columns.get(name, Value(0)), IntegerField())
            case _:
                found[f"c_{name}"] = Cast(columns.get(name, Value("")), CharField(max_length=600))
    return found


def _part(rows: QuerySet[Any], **columns: Any) -> QuerySet[Any, Any]:
    part: QuerySet[Any, Any] = rows.order_by().annotate(**_texts(**columns)).values_list(*COLUMNS)
    return part


def signals(now: datetime) -> tuple[list[dict[str, Any]], set[str]]:
    """Return what needs somebody, and which of `profile`, `task`, `token` there is one of."""
    stale = STALE_AFTER[Status.RUNNING][0]
    agent = Profile.objects.filter(CAN_START, name=OuterRef("assignee"), paused_at=None)
    human = Q(status=Status.BLOCKED, block_kind__in=sorted(HUMAN_BLOCKS))
    waits = Q(status=Status.READY, not_before__gt=now)
    failed = Q(status=Status.READY, failures__gt=0)
    waited = Q(status=Status.READY, since__lte=now - STRANDED_AFTER)
    stranded = waited & ~Exists(agent)
    ticking = WorkerHost.objects.filter(status=HostStatus.TICKING, tick_at__gte=now - SILENT_AFTER).values("node")
    here = Project.objects.filter(slug=OuterRef("project"), missing_since=None, node__in=ticking)
    homeless = waited & ~Q(project="") & ~Exists(here)
    silent = Q(status=Status.RUNNING, active_at__lte=now - stale)
    what = Case(
        When(human, then=Value("blocked")),
        When(status=Status.REVIEW, then=Value("review")),
        When(silent, then=Value("silent")),
        When(waits, then=Value("waits")),
        When(stranded, then=Value("stranded")),
        When(homeless, then=Value("homeless")),
        default=Value("failed"),
    )
    tasks = _part(
        Task.objects.filter(human | waits | failed | stranded | homeless | silent | Q(status=Status.REVIEW)),
        rank=Case(When(human, then=Value(2)), When(status=Status.REVIEW, then=Value(3)), default=Value(4)),
        what=what,
        key=F("pk"),
        title=F("title"),
        status=F("status"),
        kind=F("block_kind"),
        reason=Case(
            When(status=Status.BLOCKED, then=Substr("block_reason", 1, LONGEST_REASON)), default=F("last_error")
        ),
        at=Case(When(waits, then=F("not_before")), When(silent, then=F("active_at")), default=F("since")),
        since=F("since"),
        failures=F("failures"),
    )
    paused = Profile.objects.exclude(paused_at=None)
    parts = (
        _part(
            paused, rank=Value(1), what=Value("profile"), key=F("name"), reason=F("paused_reason"), at=F("paused_at")
        ),
        _part(Board.objects.exclude(paused_at=None), rank=Value(1), what=Value("board"), at=F("paused_at")),
        # Only whether there is one: equal lines of a union are one.
        _part(
            Profile.objects.filter(CAN_START, paused_at=None), rank=Value(0), what=Value("made"), key=Value("profile")
        ),
        _part(Task.objects.all(), rank=Value(0), what=Value("made"), key=Value("task")),
        _part(ApiToken.objects.filter(run=""), rank=Value(0), what=Value("made"), key=Value("token")),
    )
    rows = [Row(*row) for row in tasks.union(*parts).order_by("c_rank", "c_at")[:MOST]]
    made = {row.key for row in rows if row.what == "made"}
    return [NEEDS[row.what](row) for row in rows if row.what != "made"], made


def _need(row: Row, severity: str, title: str, reason: str, *, mark: str, url: str, **remedy: Any) -> dict[str, Any]:
    return {"severity": severity, "title": title, "reason": reason, "mark": mark, "url": url, "at": row.at, **remedy}


def _of_task(row: Row, severity: str, title: str, reason: str, *, mark: str, **remedy: Any) -> dict[str, Any]:
    """Return a task's line: `post` = (verb, label) is done at once, `ask` = (verb, label) asks first."""
    url = reverse("task", args=[row.key])
    name = _("%(title)s: %(what)s") % {"title": row.title[:120], "what": title}
    found = _need(row, severity, name, reason, mark=mark, url=url)
    if post := remedy.get("post"):
        seen = f"{row.status}.{int(row.since.timestamp() * 1_000_000)}" if row.since else ""
        found |= {"post_url": f"{url}{post[0]}/", "post_label": post[1], "seen": seen}
    if ask := remedy.get("ask"):
        found |= {"act_url": f"{url}{ask[0]}/", "act_label": ask[1]}
    return found


def _line(text: str) -> str:
    # What its worker printed last stands below.
    return text.partition("\n")[0]


def _blocked(row: Row) -> dict[str, Any]:
    if row.kind == BlockKind.BREAKER:
        return _of_task(
            row,
            "special",
            _("the breaker is open"),
            f"{ngettext('%d failure.', '%d failures.', row.failures) % row.failures} {_line(row.reason)}",
            mark="breaker",
            post=("unblock", _("Retry")),
        )
    if not is_question(row.kind, row.reason):
        return _of_task(
            row, "special", _("over budget"), row.reason, mark="blocked", ask=("limit", _("Raise the limit…"))
        )
    title = _("needs what its worker cannot do") if row.kind == BlockKind.CAPABILITY else _("waits for your answer")
    reason = row.reason or _("No reason was given.")
    return _of_task(row, "special", title, reason, mark="blocked", ask=("unblock", _("Answer…")))


def _review(row: Row) -> dict[str, Any]:
    reason = _("Handed in. Look at it, then approve it or send it back.")
    return _of_task(row, "special", _("waits for your review"), reason, mark="review", post=("approve", _("Approve")))


def _silent(row: Row) -> dict[str, Any]:
    reason = _("Its worker has said nothing for a long time.")
    return _of_task(row, "warn", _("no activity"), reason, mark="stalled", ask=("release", _("Release…")))


def _waits(row: Row) -> dict[str, Any]:
    reason = _("Its agent met a quota; it is taken up again by itself.")
    return _of_task(row, "warn", _("waits for quota"), reason, mark="rate_limited", post=("todo", _("Hold")))


def _stranded(row: Row) -> dict[str, Any]:
    reason = _("It is ready, and no profile that can be started does it.")
    return _of_task(row, "warn", _("stranded"), reason, mark="stalled", ask=("assign", _("Assign…")))


def _homeless(row: Row) -> dict[str, Any]:
    reason = _("It is ready, and its project is not there, or on a host whose worker does not tick.")
    return _of_task(row, "warn", _("stranded"), reason, mark="stalled", post=("todo", _("Hold")))


def _failed(row: Row) -> dict[str, Any]:
    tries = ngettext("It failed %d time and is tried again.", "It failed %d times and is tried again.", row.failures)
    reason = f"{tries % row.failures} {_line(row.reason)}".strip()
    return _of_task(row, "bad", _("the last run failed"), reason, mark="crashed", post=("todo", _("Hold")))


def _profile(row: Row) -> dict[str, Any]:
    found = _need(
        row,
        "bad",
        _("The profile %s is paused") % row.key,
        row.reason or _("None of its workers is started."),
        mark="paused",
        url=reverse("profiles"),
    )
    return {**found, "post_url": reverse("profile-resume", args=[row.key]), "post_label": _("Resume")}


def _board(row: Row) -> dict[str, Any]:
    reason = _("Nothing that is ready is taken up.")
    found = _need(row, "warn", _("The dispatcher is paused"), reason, mark="paused", url=reverse("kanban"))
    return {**found, "post_url": reverse("dispatch-resume"), "post_label": _("Resume")}


NEEDS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "blocked": _blocked,
    "review": _review,
    "silent": _silent,
    "waits": _waits,
    "stranded": _stranded,
    "homeless": _homeless,
    "failed": _failed,
    "profile": _profile,
    "board": _board,
}
