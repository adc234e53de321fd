"""The home page: what needs somebody, uncut where it counts; what runs of every kind; what today cost, of all."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.utils import timezone

from config import needs, queries, running
from kanban import lifecycle
from kanban.models import Run, Task
from kanban.states import Outcome
from projects.costs import Sum
from projects.models import Project, UsageEntry
from projects.states import Role
from services.models import ManagedProcess
from services.states import Purpose, Status
from tests.kanban import rows
from tests.kanban.rows import ANNA
from tests.services.rows import BOOT

pytestmark = pytest.mark.django_db


@pytest.fixture
def make_process(now):
    """Make rows of processes by the dozen; `now` is the moment they came to their status."""

    def make(name: str, status: Status, purpose: Purpose = Purpose.SERVICE, **fields) -> ManagedProcess:
        moment = timezone.now()
        if status in {Status.HEALTHY, Status.RUNNING, Status.UNHEALTHY}:
            fields = {"pid": 4242, "start_ticks": 1, "boot_id": BOOT, "started_at": moment, **fields}
        common = {"node": "test-node", "cmd": "python3", "cwd": "/", "since": moment, "declared_at": moment}
        return ManagedProcess.objects.create(
            project="garden", name=name, status=status, purpose=purpose, **common, **fields
        )

    return make


def home() -> dict:
    return queries.home(timezone.now(), role=Role.VIEWER)


def group(found: dict, severity: str) -> dict:
    return next(each for each in found["needs"]["groups"] if each["severity"] == severity)


def blocked(number: int) -> None:
    for each in range(number):
        lifecycle.block(rows.task(f"Blocked {each}"), "Which?", by=ANNA, now=timezone.now())


class TestNeeds:
    def test_no_severity_hides_another_and_all_are_counted(self, make_process, sign_in):
        blocked(needs.SHOWN + 15)
        for number in range(needs.SHOWN + 5):
            make_process(f"s{number:02}", Status.FAILED)
        make_process("late", Status.HEALTHY, expires_at=timezone.now() + timedelta(minutes=1))
        found = home()["needs"]
        assert [(each["severity"], len(each["needs"]), each["total"]) for each in found["groups"]] == [
            ("special", needs.SHOWN, needs.SHOWN + 15),
            ("bad", needs.SHOWN, needs.SHOWN + 5),
            ("warn", 1, 1),
        ]
        assert (found["total"], found["is_least"]) == (2 * needs.SHOWN + 21, False)
        text = sign_in().get("/").content.decode()
        assert f'Needs you <span class="count">{2 * needs.SHOWN + 21}</span>' in text
        assert '<a href="/kanban/list/?status=blocked">15 more tasks</a>' in text
        assert '<a href="/services/">5 more services</a>' in text

    def test_no_kind_hides_another_of_its_severity(self, imported):
        blocked(needs.SHOWN)
        imported("stuck", states=("blocked",) * (needs.SHOWN + 10))
        special = group(home(), "special")
        of_tasks = [need for need in special["needs"] if need["url"].startswith("/kanban/")]
        assert (len(of_tasks), len(special["needs"])) == (needs.SHOWN // 2, needs.SHOWN)
        assert special["total"] == 2 * needs.SHOWN + 10
        assert [each["url"] for each in special["more"]] == [
            "/kanban/list/?status=blocked",
            "/projects/?status=blocked",
        ]

    def test_nothing_more_is_told_of_when_all_is_shown(self, imported):
        imported("stuck", states=("blocked", "blocked", "passed"))
        special = group(home(), "special")
        assert (special["total"], len(special["needs"]), special["more"]) == (2, 2, [])

    @pytest.mark.parametrize(
        ("wanted", "shares"),
        [
            ({"a": 3}, {"a": 3}),
            ({"a": 30}, {"a": 10}),
            ({"a": 30, "b": 2}, {"a": 8, "b": 2}),
            ({"a": 30, "b": 30, "c": 1}, {"a": 4, "b": 5, "c": 1}),
            ({}, {}),
        ],
    )
    def test_places_are_shared(self, wanted, shares):
        assert needs._shared(wanted, 10) == shares

    def test_as_many_tasks_as_are_read_may_not_be_all(self, monkeypatch, sign_in):
        monkeypatch.setattr("kanban.pages.needs.MOST", 5)
        blocked(8)
        assert home()["needs"]["is_least"]
        assert "+</span></h2>" in sign_in().get("/").content.decode()


class TestRunning:
    def test_loops_task_workers_and_services_each_with_its_link_and_status(self, make_process, imported, sign_in):
        imported("looping")
        Project.objects.update(running=True, pid=1)
        run = rows.started(rows.task("Paint the gate"))
        make_process("web", Status.HEALTHY, ports=[8080])
        make_process("gone", Status.EXITED)
        found = home()
        assert found["running"]["total"] == found["totals"]["running"] == 3
        text = sign_in().get("/", headers={"HX-Request": "true", "HX-Target": "running"}).content.decode()
        for part in (f'href="/runs/{run.pk}/">Paint the gate', 'href="/services/garden/web/"', ":8080", "Healthy"):
            assert part in text, part
        assert 'href="/projects/looping/"' in text
        assert "gone" not in text

    def test_says_how_many_there_are_when_not_all_are_shown(self, make_process, sign_in):
        for number in range(running.SHOWN + 3):
            make_process(f"s{number:02}", Status.HEALTHY)
            make_process(f"w{number:02}", Status.RUNNING, Purpose.WORKER)
        text = sign_in().get("/").content.decode()
        assert f"{running.SHOWN} of {running.SHOWN + 3} services are shown" in text
        assert f"{running.SHOWN} of {running.SHOWN + 3} task workers are shown" in text
        assert text.count('href="/services/garden/s') == running.SHOWN

    def test_says_so_when_nothing_runs(self, sign_in):
        assert "Nothing is running" in sign_in().get("/").content.decode()


class TestCostToday:
    @pytest.fixture
    def attempt(self):
        def make(cost: str | None, *, outcome: Outcome = Outcome.COMPLETED, ago: timedelta = timedelta(0)) -> Run:
            now = timezone.now()
            task = Task.objects.first() or rows.task("Paint")
            return Run.objects.create(
                task=task,
                number=Run.objects.count() + 1,
                owner="x",
                started_at=now - ago,
                ended_at=now - ago,
                outcome=outcome,
                cost_usd=cost and Decimal(cost),
            )

        return make

    def test_loops_and_attempts_at_tasks_are_added(self, attempt, imported, sign_in):
        project = imported("looping")
        UsageEntry.objects.create(project=project, at=timezone.now(), cost=Decimal("1.25"), key="1")
        attempt("0.5")
        attempt("100", ago=timedelta(days=2))
        found = home()
        assert found["cost_today"].shown == "$1.75"
        assert found["cost_of_tasks"] == Sum(cost=Decimal("0.5"), runs=1, tokens=None)
        text = sign_in().get("/").content.decode()
        assert "$1.75" in text
        assert "(of tasks $0.50)" in text

    def test_what_told_no_cost_is_unknown_and_not_nothing(self, attempt):
        attempt(None)
        assert home()["cost_today"].shown == "unknown"
        attempt("0.5")
        assert home()["cost_today"].shown == "$0.50 + 1 unknown"

    def test_what_did_not_start_cost_nothing(self, attempt, sign_in):
        attempt(None, outcome=Outcome.SPAWN_FAILED)
        assert home()["cost_today"] == Sum()
        assert "of tasks" not in sign_in().get("/").content.decode()


def test_home_costs_at_most_12_queries_with_everything_on_it(
    make_process, imported, sign_in, django_assert_max_num_queries
):
    for number in range(14):
        imported(f"p{number:02}", states=("blocked", "pending", "failed"))
    Project.objects.filter(slug__lt="p13").update(running=True, pid=1)
    for number in range(14):
        make_process(f"s{number:02}", Status.FAILED if number % 2 else Status.UNHEALTHY)
        make_process(f"w{number:02}", Status.RUNNING, Purpose.WORKER)
    blocked(5)
    rows.started()
    client = sign_in("operator")
    with django_assert_max_num_queries(12):
        assert client.get("/").status_code == 200
