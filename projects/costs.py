"""What work cost: sums that never show unknown as 0."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from django.db.models import Case, Count, Exists, F, IntegerField, OuterRef, Q, QuerySet, Value, When
from django.db.models import Sum as Added
from django.utils.translation import gettext as _

from projects.days import Window, day_of, read_day, window
from projects.models import Iteration, Project, UsageEntry

K = TypeVar("K")
STORIES_SHOWN = 25
MODELS_SHOWN = 25
EXPORT_PAGE = 1000
TOKENS = ("input_tokens", "output_tokens", "cache_creation_tokens", "cache_read_tokens")
# SQLite adds in floating point; what a column can hold is exact again after this.
SMALLEST = Decimal("1e-9")
# A bill comes after its iteration has begun; of one whose beginning nobody saw this long before its end.
BEGUN_SLACK = timedelta(minutes=1)
LONGEST_ITERATION = timedelta(hours=6)
SUMS = {
    "spent": Added("cost"),
    "runs": Count("pk"),
    "known": Count("cost"),
    "failures": Count("pk", filter=Q(failed=True)),
    "waits": Count("pk", filter=Q(rate_limited=True)),
    **{f"all_{name}": Added(name) for name in TOKENS},
}


@dataclass(frozen=True, slots=True)
class Sum:
    """What some runs cost. `cost` is US dollars of those `runs - unknown` that said it, None where none did.

    `tokens` counts all four kinds, cached ones too, None where nobody said. `rate_limited` met a quota: among the
    runs, not among the `failed`.
    """

    cost: Decimal | None = Decimal(0)
    runs: int = 0
    tokens: int | None = 0
    unknown: int = 0
    failed: int = 0
    rate_limited: int = 0

    def __add__(self, other: "Sum") -> "Sum":
        if not (self.runs and other.runs):
            return self if self.runs else other
        return Sum(
            cost=_plus(self.cost, other.cost),
            runs=self.runs + other.runs,
            tokens=_plus(self.tokens, other.tokens),
            unknown=self.unknown + other.unknown,
            failed=self.failed + other.failed,
            rate_limited=self.rate_limited + other.rate_limited,
        )

    @property
    def dollars(self) -> str:
        return _("unknown") if self.cost is None else money(self.cost)

    @property
    def shown(self) -> str:
        """The cost in words: `$1.20`, `$1.20 + 2 unknown`, `unknown`."""
        return self.dollars + (_(" + %d unknown") % self.unknown if self.unknown and self.cost is not None else "")

    @property
    def tokens_shown(self) -> str:
        return _("unknown") if self.tokens is None else short(self.tokens)

    def row(self) -> dict[str, Any]:
        """Return the sum as REST shows it; money is a number, null = unknown."""
        cost = None if self.cost is None else float(self.cost)
        return {"cost": cost, "runs": self.runs, "tokens": self.tokens, "unknown_cost_runs": self.unknown}


class Line(NamedTuple):
    """One row of a table: its sum, and its bar as a share of the dearest, 0 to 100; `group` is a story's project."""

    group: str
    name: str
    sum: Sum
    share: float


class Bar(NamedTuple):
    """One day of the chart: `x` in units of a day from the left, `height` 0 to 100."""

    x: int
    height: float
    day: date
    sum: Sum


@dataclass(frozen=True, slots=True)
class Beside:
    """What other work than loops has cost in a window: attempts at tasks.

    `ever`, of all time, is by project too; `known` are the projects that have any, whichever was asked for.
    """

    by_day: dict[date, Sum] = field(default_factory=dict)
    by_project: dict[str, Sum] = field(default_factory=dict)
    by_profile: dict[str, Sum] = field(default_factory=dict)
    ever: dict[str, Sum] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Report:
    """A window's costs as the page shows them; tables are dearest first, `by_day` has every day, oldest first.

    Stories and models are those of loops, profiles those of attempts at tasks; the rest counts both.
    """

    window: Window
    today: Sum
    total: Sum
    ever: Sum
    by_day: list[Bar]
    by_project: list[Line]
    by_story: list[Line]
    by_model: list[Line]
    by_profile: list[Line]

    @property
    def dearest(self) -> Bar | None:
        """The day that cost most, None where no cost is known."""
        return max((bar for bar in self.by_day if bar.sum.cost), key=lambda bar: bar.sum.cost or 0, default=None)

    @property
    def days_with_runs(self) -> list[Bar]:
        return [bar for bar in reversed(self.by_day) if bar.sum.runs]


def money(amount: Decimal) -> str:
    """Return dollars as text: cents, and of less than ten cents two digits that say something."""
    if not amount or amount >= Decimal("0.10"):
        return f"${amount:,.2f}"
    if amount < Decimal("0.0001"):
        return _("under $0.0001")
    return f"${amount:.{1 - amount.adjusted()}f}"


def short(number: int) -> str:
    """Return a count in at most five characters and a unit: `950`, `12.3 k`, `4.56 M`."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 999.5 * size else f"{number / size:,.0f} {unit}"
    return str(number)


def entries(project: str = "") -> QuerySet[UsageEntry]:
    """Return the entries of a project by its slug, "" = of all."""
    rows = UsageEntry.objects.order_by()
    return rows.filter(project__slug=project) if project else rows


def document(days: int, now: datetime, visible_to: str = "") -> dict[str, Any]:
    """Return the answer of /api/ralph/usage (spec: projects.md 3) in three queries.

    `by_project` and `by_day` hold the projects and days that have runs; `tokens` and `unknown_cost_runs` are the
    window's.
    """
    span = window(days, now)
    by_day = _by_day(entries(visible_to), span)
    by_project = _grouped(_within(entries(visible_to), span), "project__slug")
    total, today, ever = _folded(by_day.values()), by_day.get(span.today, Sum()), _folded(_ever(visible_to))
    shown, day, all_time = total.row(), today.row(), ever.row()
    return {
        "today": span.today.isoformat(),
        "today_cost": day["cost"],
        "today_runs": day["runs"],
        "window_days": span.days,
        "window_cost": shown["cost"],
        "window_runs": shown["runs"],
        "by_project": {slug: added.row() for (slug,), added in sorted(by_project.items())},
        "by_day": {each.isoformat(): added.row() for each, added in sorted(by_day.items())},
        "total_cost": all_time["cost"],
        "total_runs": all_time["runs"],
        "unknown_cost_runs": shown["unknown_cost_runs"],
        "tokens": shown["tokens"],
        "fetchedAt": now.isoformat(),
    }


def today(now: datetime) -> dict[str, Sum]:
    """Return what each project that ran today has cost today, by slug; one query."""
    found = _grouped(_within(entries(), window(1, now)), "project__slug")
    return {slug: added for (slug,), added in found.items()}


def report(days: int, now: datetime, project: str = "", beside: Beside | None = None) -> Report:
    """Return what the page shows, in five queries however many entries there are."""
    span = window(days, now)
    rows = entries(project)
    beside = beside or Beside()
    by_day = merged(_by_day(rows, span), beside.by_day)
    inside = _within(rows, span)
    by_project = {slug: added for (slug,), added in _grouped(inside, "project__slug").items()}
    by_story = _grouped(inside, "project__slug", "story_key", limit=STORIES_SHOWN)
    by_model = _grouped(inside, "model", limit=MODELS_SHOWN)
    return Report(
        window=span,
        today=by_day.get(span.today, Sum()),
        total=_folded(by_day.values()),
        ever=_folded([*_ever(project), *beside.ever.values()]),
        by_day=_bars(by_day, span),
        by_project=_lines(dearest_first(merged(by_project, beside.by_project))),
        by_story=_lines(by_story),
        by_model=_lines(by_model),
        by_profile=_lines(dearest_first(beside.by_profile)),
    )


def reporting() -> list[dict[str, Any]]:
    """Return the projects that have entries, or lines that could not be read: slug, has_entries, rejected, problem."""
    state = "fingerprints__usage__"
    rows: QuerySet[Any, Any] = Project.objects.annotate(
        has_entries=Exists(UsageEntry.objects.filter(project=OuterRef("pk")))
    )
    rows = rows.filter(Q(has_entries=True) | Q(**{f"{state}rejected__gt": 0}) | Q(**{f"{state}problem__isnull": False}))
    names = {"rejected": F(f"{state}rejected"), "problem": F(f"{state}problem")}
    return list(rows.order_by("slug").values("slug", "has_entries", **names))


def bill(project: Project, iterations: Iterable[Iteration]) -> Sum:
    """Set `spent` of iterations of a project (None where nothing was reported), and return what all of it cost.

    A loop that counts from 1 again reports one number twice: what an iteration cost was reported after it began.
    """
    rows = list(iterations)
    begun = [When(iteration=row.number, at__gte=_begun(row), then=row.number) for row in rows]
    of = Case(*begun, default=None, output_field=IntegerField()) if begun else Value(None, output_field=IntegerField())
    spent: QuerySet[Any, Any] = UsageEntry.objects.order_by().filter(project=project).annotate(of=of)
    found = {row["of"]: _sum(row) for row in spent.values("of").annotate(**SUMS)}
    for row in rows:
        row.spent = found.get(row.number)  # type: ignore[attr-defined]
    return _folded(found.values())


def exported(span: Window, project: str = "") -> Iterator[list[UsageEntry]]:
    """Yield a window's entries, oldest first, a page at a time: no query stays open while somebody reads slowly."""
    rows = _within(entries(project), span).select_related("project").order_by("at", "id")
    rows = rows.only(*(field.name for field in UsageEntry._meta.concrete_fields), "project__slug")  # noqa: SLF001
    after = Q()
    while page := list(rows.filter(after)[:EXPORT_PAGE]):
        yield page
        last = page[-1]
        after = Q(at__gt=last.at) | Q(at=last.at, pk__gt=last.pk)


def merged(one: Mapping[K, Sum], other: Mapping[K, Sum]) -> dict[K, Sum]:
    """Return what both cost together, each key of either."""
    return {key: one.get(key, Sum()) + other.get(key, Sum()) for key in {**one, **other}}


def dearest_first(sums: Mapping[str, Sum]) -> dict[tuple[str, ...], Sum]:
    """Return sums in the order of tables: the dearest first, unknown ones last."""
    order = sorted(sums.items(), key=lambda item: (item[1].cost is None, -(item[1].cost or 0), -item[1].runs, item[0]))
    return {(name,): added for name, added in order}


def _begun(iteration: Iteration) -> datetime:
    return (iteration.started_at or iteration.written_at - LONGEST_ITERATION) - BEGUN_SLACK


def _within(rows: QuerySet[UsageEntry], span: Window) -> QuerySet[UsageEntry]:
    return rows.filter(at__gte=span.start, at__lt=span.end)


def _ever(project: str) -> list[Sum]:
    return [_sum(entries(project).aggregate(**SUMS))]


def _grouped(rows: QuerySet[UsageEntry], *names: str, limit: int | None = None) -> dict[tuple[str, ...], Sum]:
    found = rows.values(*names).annotate(**SUMS).order_by(F("spent").desc(nulls_last=True), "-runs", *names)
    return {tuple(row[name] for name in names): _sum(row) for row in found[:limit]}


def _by_day(rows: QuerySet[UsageEntry], span: Window) -> dict[date, Sum]:
    inside: QuerySet[Any, Any] = _within(rows, span).annotate(day=day_of(span, "at"))
    return {read_day(row["day"]): _sum(row) for row in inside.values("day").annotate(**SUMS)}


def _sum(row: dict[str, Any]) -> Sum:
    runs, unknown = row["runs"], row["runs"] - row["known"]
    said = [row[f"all_{name}"] for name in TOKENS if row[f"all_{name}"] is not None]
    return Sum(
        cost=Decimal(row["spent"]).quantize(SMALLEST) if row["known"] else None if runs else Decimal(0),
        runs=runs,
        tokens=int(sum(said)) if said or not runs else None,
        unknown=unknown,
        failed=row["failures"],
        rate_limited=row["waits"],
    )


def _folded(sums: Iterable[Sum]) -> Sum:
    whole = Sum()
    for each in sums:
        whole += each
    return whole


def _plus(one: Any, other: Any) -> Any:
    return one if other is None else other if one is None else one + other


def _bars(by_day: dict[date, Sum], span: Window) -> list[Bar]:
    top = max((added.cost or 0 for added in by_day.values()), default=0)
    days = [span.first + timedelta(days=number) for number in range(span.days)]
    sums = [by_day.get(day, Sum()) for day in days]
    return [Bar(x, _share(added, top), day, added) for x, (day, added) in enumerate(zip(days, sums, strict=True))]


def _lines(sums: dict[tuple[str, ...], Sum]) -> list[Line]:
    top = max((added.cost or 0 for added in sums.values()), default=0)
    return [Line(key[0], key[-1], added, _share(added, top)) for key, added in sums.items()]


def _share(added: Sum, top: Decimal | int) -> float:
    if not added.cost or not top:
        return 0.0
    # What cost something is seen.
    return max(1.0, math.floor(added.cost / top * 1000) / 10)
