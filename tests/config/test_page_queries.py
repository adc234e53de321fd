"""No page costs more than 12 queries, however much there is to show (spec: ui.md, budgets)."""

from datetime import timedelta

import pytest
from django.utils import timezone

from kanban.models import Run, Task
from kanban.states import Outcome
from kanban.states import Status as TaskStatus
from projects import importer
from projects.models import ApiToken, Event
from services.models import ManagedProcess
from services.states import Purpose, Status
from tests.projects.files import write_log

pytestmark = pytest.mark.django_db
MOST = 12
PATHS = (
    "/",
    "/help/",
    "/search/",
    "/search/?q=p0",
    "/projects/",
    "/projects/?sort=-left",
    "/projects/p00/",
    "/projects/p00/?sort=state",
    "/projects/p00/stories/US-001/",
    "/projects/p00/iterations/",
    "/projects/p00/iterations/?sort=-took",
    "/projects/p00/iterations/1/",
    "/projects/p00/stop/",
    "/projects/p00/budget/",
    "/services/",
    "/services/?purpose=all",
    "/services/?sort=status",
    "/services/new/",
    "/services/p00/s00/",
    "/services/p00/s00/stop/",
    "/services/~/{process}/",
    "/kanban/",
    "/kanban/?lanes=1&archived=1&switches=1",
    "/kanban/list/",
    "/kanban/list/?sort=status",
    "/kanban/profiles/",
    "/kanban/tasks/new/",
    "/kanban/tasks/t_00000000/",
    "/kanban/tasks/t_00000000/move/",
    "/runs/{run}/",
    "/costs/",
    "/events/",
    "/events/{event}/",
    "/system/",
    "/system/clean-up/",
    "/settings/",
    "/settings/notices/",
    "/settings/tokens/{token}/revoke/",
)


@pytest.fixture
def addresses(imported, make_token, workspace) -> dict[str, int]:
    """Dozens of everything; returns what the addresses hold."""
    now = timezone.now()
    for number in range(12):
        imported(f"p{number:02}", states=("passed", "blocked", "failed", "pending") * 5)
        make_token()
    write_log(workspace / "p00", 1)
    importer.rescan(now=now)
    common = {"node": "test-node", "cmd": "python3", "cwd": "/", "since": now, "declared_at": now}
    for number in range(40):
        kind = {"purpose": Purpose.SERVICE, "status": Status.FAILED if number % 3 else Status.EXITED}
        row = ManagedProcess.objects.create(project=f"p{number % 12:02}", name=f"s{number:02}", **kind, **common)
    tasks = [
        Task(
            id=f"t_{number:08x}",
            title=f"Task {number}",
            assignee="demo",
            status=(TaskStatus.READY, TaskStatus.DONE, TaskStatus.TODO)[number % 3],
            since=now,
            created_at=now,
            active_at=now,
        )
        for number in range(60)
    ]
    Task.objects.bulk_create(tasks)
    for number in range(10):
        run = Run.objects.create(
            task=tasks[0],
            number=number + 1,
            owner="x",
            profile="demo",
            started_at=now,
            ended_at=now + timedelta(seconds=1),
            outcome=Outcome.CRASHED,
        )
    event = Event.objects.order_by("-id")[0]
    return {"process": row.pk, "run": run.pk, "event": event.pk, "token": ApiToken.objects.all()[0].pk}


@pytest.mark.parametrize("path", PATHS)
def test_no_page_costs_more(path, addresses, sign_in, django_assert_max_num_queries):
    client = sign_in("admin")
    with django_assert_max_num_queries(MOST):
        assert client.get(path.format(**addresses)).status_code == 200
