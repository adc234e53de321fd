"""/costs/: loops and attempts at tasks together, and told apart."""

import csv
import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from kanban import costs as attempts
from kanban import lifecycle
from kanban.models import Run, Task
from kanban.states import Outcome
from projects import costs, exports
from projects.days import window, zone
from projects.models import Event, UsageEntry
from tests.kanban import rows
from tests.projects.test_cost_pages import rows_of, whole

pytestmark = pytest.mark.django_db


@pytest.fixture
def ended(db):
    """Make attempts that have ended: so many days ago, by a profile, at a task of a project."""

    def make(cost: str | None, *, days: float = 0, project: str = "", outcome=Outcome.COMPLETED, **fields) -> Run:
        at = timezone.now() - timedelta(days=days)
        fields = {"profile": "demo", "owner": "x", "tokens": None, **fields}
        task = rows.task()
        Task.objects.filter(pk=task.pk).update(project=project)
        return Run.objects.create(
            task=task,
            number=1,
            started_at=at - timedelta(seconds=90),
            ended_at=at,
            outcome=outcome,
            cost_usd=cost,
            **fields,
        )

    return make


@pytest.fixture
def billed(imported):
    """Make bills of iterations of a project's loop."""

    def make(slug: str, cost: str | None, *, days: float = 0) -> None:
        project = imported(slug)
        UsageEntry.objects.create(
            project=project,
            at=timezone.now() - timedelta(days=days),
            cost=cost,
            story_key="US-1",
            model="large",
            key=f"{slug}{cost}{days}",
        )

    return make


def report(days: int = 30, project: str = "") -> costs.Report:
    now = timezone.now()
    return costs.report(days, now, project, attempts.beside(window(days, now), project))


class TestReport:
    def test_both_are_counted_and_what_is_unknown_is_told_apart(self, ended, billed):
        billed("garden", "1.5")
        ended("0.25", project="garden")
        ended(None, project="orchard", tokens=500)
        ended("2", days=3, profile="claude", outcome=Outcome.CRASHED)
        ended("4", days=3, profile="claude", outcome=Outcome.RATE_LIMITED)
        ended("7", days=60)
        found = report()
        assert found.today == costs.Sum(Decimal("1.75"), 3, 500, 1)
        assert (found.total.cost, found.total.runs, found.total.unknown) == (Decimal("7.75"), 5, 1)
        assert (found.total.failed, found.total.rate_limited) == (1, 1)
        assert found.ever.cost == Decimal("14.75")
        assert [(line.name, line.sum.cost) for line in found.by_project] == [
            ("", Decimal(6)),
            ("garden", Decimal("1.75")),
            ("orchard", None),
        ]
        assert [(line.name, line.sum.cost, line.sum.runs) for line in found.by_profile] == [
            ("claude", Decimal(6), 2),
            ("demo", Decimal("0.25"), 2),
        ]
        assert [line.name for line in found.by_story] == ["US-1"]
        assert [bar.sum.runs for bar in found.by_day if bar.sum.runs] == [2, 3]

    def test_what_did_not_start_or_has_not_ended_is_none(self, ended):
        ended("1", outcome=Outcome.SPAWN_FAILED)
        rows.started()
        assert report().ever == costs.Sum()

    def test_of_one_project(self, ended, billed):
        billed("garden", "1")
        billed("orchard", "2")
        ended("4", project="garden")
        ended("8", project="orchard")
        ended("16")
        assert report(project="garden").total.cost == 5
        assert report(project="garden").ever.cost == 5
        assert [line.name for line in report(project="garden").by_project] == ["garden"]

    @pytest.mark.parametrize("name", ["UTC", "Pacific/Auckland", "America/New_York"])
    @pytest.mark.parametrize("now", [datetime(2026, 11, 3, 12, tzinfo=UTC), datetime(2026, 9, 28, 12, tzinfo=UTC)])
    def test_a_day_is_the_sites(self, ended, settings, name, now, time_machine):
        # The clocks of New York and of Auckland change within the four days before.
        time_machine.move_to(now, tick=False)
        settings.TIME_ZONE = name
        for hours in range(0, 96, 5):
            ended("1", days=hours / 24)
        found = attempts.beside(window(30, now)).by_day
        days = [run.ended_at.astimezone(zone()).date() for run in Run.objects.all()]
        assert {day: each.runs for day, each in found.items()} == {day: days.count(day) for day in days}


class TestPage:
    def test_attempts_alone_are_no_empty_page(self, sign_in, ended):
        assert "No usage reported" in sign_in().get("/costs/").content.decode()
        ended(None)
        text = sign_in().get("/costs/").content.decode()
        assert "No usage reported" not in text
        assert "By profile" in text
        assert "By story" not in text
        assert "no project" in text

    def test_every_project_can_be_chosen_from_every_other(self, sign_in, ended, billed):
        ended("1", project="garden")
        ended("1", project="orchard")
        billed("hedge", "1")
        client = sign_in()
        for query in ("", "?project=garden", "?project=hedge", "?days=7&project=nobody"):
            text = client.get(f"/costs/{query}").content.decode()
            for slug in ("garden", "orchard", "hedge"):
                assert f'<option value="{slug}"' in text, (query, slug)

    @pytest.mark.parametrize(
        "end",
        [
            lambda run: lifecycle.complete(run.task, by=rows.as_run(run), now=timezone.now()),
            lambda run: lifecycle.block(run.task, "?", by=rows.as_run(run), now=timezone.now()),
            lambda run: lifecycle.request_review(run.task, by=rows.as_run(run), now=timezone.now()),
            lambda run: lifecycle.release(run.task, by=rows.ANNA, now=timezone.now()),
            lambda run: lifecycle.archive(run.task, by=rows.ANNA, now=timezone.now()),
            lambda run: rows.ended(run, 3),
            lambda run: rows.ended(run, 75),
            lambda run: rows.ended(run, 0),
        ],
    )
    def test_it_is_live_however_an_attempt_ends(self, sign_in, end):
        run = rows.started()
        since = Event.objects.order_by("-id")[0].pk
        end(run)
        told = set(Event.objects.filter(id__gt=since).values_list("kind", flat=True))
        kinds = sign_in().get("/costs/").content.decode().partition('data-live-kinds="')[2].partition('"')[0].split()
        assert told & set(kinds), told

    def test_costs_at_most_12_queries(self, sign_in, ended, billed, django_assert_max_num_queries):
        for number in range(20):
            billed(f"p{number:02}", "1", days=number)
            ended("1", days=number, project=f"p{number:02}", profile=f"profile-{number}")
        client = sign_in("admin")
        with django_assert_max_num_queries(12):
            text = client.get("/costs/?days=365").content.decode()
        assert '<option value="p07">' in text
        assert "profile-19" in text

    def test_what_agents_wrote_is_inert(self, sign_in, ended):
        ended("1", profile="<b>x</b>", project="<i>y</i>")
        text = sign_in().get("/costs/").content.decode()
        assert "<b>x" not in text
        assert "<i>y" not in text


class TestExport:
    def test_both_oldest_first(self, sign_in, ended, billed, monkeypatch):
        monkeypatch.setattr(costs, "EXPORT_PAGE", 2)
        monkeypatch.setattr(exports, "PAGE", 3)
        for number in range(5):
            billed(f"p{number}", str(number), days=2 * number)
            ended("0.5", days=2 * number + 1, project="=p", tokens=70, outcome=Outcome.CRASHED)
        found = rows_of(sign_in("viewer").get("/costs/export.csv?days=30"))
        lines = [dict(zip(found[0], line, strict=True)) for line in found[1:]]
        assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
        assert len(lines) == 10
        of_tasks = [line for line in lines if line["task"]]
        assert {(line["cost_usd"], line["tokens"], line["failed"], line["duration_s"]) for line in of_tasks} == {
            ("0.500000", "70", "true", "90.0")
        }
        assert {(line["project"], line["profile"], line["attempt"], line["story"]) for line in of_tasks} == {
            ("'=p", "demo", "1", "")
        }
        assert sum(line["story"] == "US-1" for line in lines) == 5

    def test_of_one_project(self, sign_in, ended):
        ended("1", project="garden")
        ended("2")
        text = whole(sign_in().get("/costs/export.csv?project=garden"))
        assert len(list(csv.reader(io.StringIO(text)))) == 2
