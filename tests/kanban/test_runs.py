"""What the token of a run may ask for over REST: its own task and what stands beside it; all else is refused."""

import pytest

from kanban.runs import check
from projects.errors import Forbidden

pytestmark = pytest.mark.pure
RUN = "t_1a2b3c4d/3"
OWN = "/api/kanban/tasks/t_1a2b3c4d"
ALLOWED = [
    ("GET", OWN),
    ("HEAD", OWN),
    ("GET", f"{OWN}/context"),
    *(("POST", f"{OWN}/{verb}") for verb in ("heartbeat", "complete", "block", "review", "comments")),
    ("POST", "/api/kanban/tasks"),
    ("GET", "/api/me"),
    ("GET", "/api/managed-processes"),
    ("GET", "/api/managed-processes/live-block"),
    ("GET", "/api/managed-processes/hint"),
    ("GET", "/api/managed-processes/by-name/web-1"),
    ("GET", "/api/managed-processes/log/web-1"),
    ("POST", "/api/managed-processes/validate"),
]
REFUSED = [
    ("GET", "/api/kanban/tasks/t_1a2b3c4e"),
    ("GET", "/api/kanban/tasks/t_1a2b3c4d5"),
    ("GET", "/api/kanban/tasks/t_1a2b3c4"),
    ("GET", f"{OWN}/"),
    ("GET", f"{OWN}/log"),
    ("GET", f"{OWN}\n"),
    ("GET", f"{OWN}/context/../../t_1a2b3c4e"),
    ("GET", f"/x{OWN}"),
    ("GET", "/api/kanban/board"),
    ("GET", "/api/kanban/tasks"),
    ("GET", "/api/projects"),
    ("GET", "/api/managed-processes/by-name/web/../../x"),
    ("GET", "/api/managed-processes/by-name/"),
    ("GET", "/api/managed-processes/log/WEB"),
    ("GET", "/admin/"),
    ("GET", ""),
    ("PATCH", OWN),
    ("DELETE", OWN),
    ("PUT", f"{OWN}/complete"),
    ("OPTIONS", OWN),
    ("get", OWN),
    ("POST", OWN),
    ("POST", f"{OWN}/complete/"),
    ("POST", f"{OWN}/complete\n"),
    *(
        ("POST", f"{OWN}/{verb}")
        for verb in ("claim", "unblock", "release", "approve", "send-back", "reopen", "context")
    ),
    ("POST", "/api/kanban/tasks/t_1a2b3c4e/complete"),
    ("POST", "/api/kanban/tasks/bulk"),
    ("POST", "/api/kanban/links"),
    ("POST", "/api/kanban/dispatch"),
    ("POST", "/api/managed-processes"),
    ("POST", "/api/me"),
    ("GET", "/api/kanban/tasks/t_1a2b3c4d/heartbeat"),
]


@pytest.mark.parametrize(("method", "path"), ALLOWED)
def test_its_own(method: str, path: str) -> None:
    check(RUN, "demo", method, path)


@pytest.mark.parametrize(("method", "path"), REFUSED)
@pytest.mark.parametrize("project", ["", "demo"])
def test_everything_else_is_refused(method: str, path: str, project: str) -> None:
    with pytest.raises(Forbidden) as refusal:
        check(RUN, project, method, path)
    assert refusal.value.code == "forbidden"


def test_without_a_project_no_service_and_no_project_is_its_own() -> None:
    for method, path in ALLOWED:
        if path.startswith("/api/managed-processes"):
            with pytest.raises(Forbidden):
                check(RUN, "", method, path)
        else:
            check(RUN, "", method, path)


@pytest.mark.parametrize("run", ["t_1a2b3c4.", ".*", "t_1a2b3c4[a-z]/1", ""])
def test_a_runs_name_is_no_pattern(run: str) -> None:
    with pytest.raises(Forbidden):
        check(run, "demo", "GET", OWN)
