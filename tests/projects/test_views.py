"""Pages of projects, stories and iterations."""

import asyncio

import pytest
from django.utils import timezone

from projects import importer
from tests.projects.files import write_log, write_project

pytestmark = pytest.mark.django_db
FRAME = 6
HOSTILE = "<script>alert(1)</script>"


async def whole(response) -> bytes:
    return b"".join([piece async for piece in response])


def read_again():
    importer.rescan(now=timezone.now())


def test_the_list_says_where_it_looked_when_it_is_empty(sign_in, workspace):
    text = sign_in().get("/projects/").content.decode()
    assert str(workspace) in text
    assert "manage.py demo" in text


def test_the_list_filters_and_keeps_the_filter(sign_in, imported):
    imported("alpha", states=("passed",))
    imported("beta", states=("failed",))
    client = sign_in()
    text = client.get("/projects/?status=failed").content.decode()
    assert "beta" in text
    assert "alpha" not in text
    assert "alpha" in client.get("/projects/?q=ALP").content.decode()
    assert client.get("/projects/?q=%25&status=nonsense&page=999").status_code == 200
    assert client.get("/projects/?q=%00").status_code == client.get("/projects/a%00b/").status_code == 400


@pytest.mark.parametrize("path", ["/projects/", "/projects/p0/"])
def test_pages_cost_the_same_however_much_there_is(sign_in, workspace, path, django_assert_max_num_queries):
    for number in range(40):
        root = write_project(workspace / f"p{number}", ("passed", "pending") * 20)
        for log in range(1, 4):
            write_log(root, log)
    read_again()
    client = sign_in()
    with django_assert_max_num_queries(FRAME + 6):
        assert client.get(path).status_code == 200


def test_a_project_page_shows_all_of_it(sign_in, imported, workspace):
    imported("demo", states=("passed", "failed", "pending"), progress="# log\n\x1b[31mred\x1b[0m\n")
    write_log(workspace / "demo", 1)
    read_again()
    text = sign_in().get("/projects/demo/").content.decode()
    for part in ("</strong>/3", "reason 2", "Story 3", "ralph/demo", "/iterations/1/", "red", "project.found"):
        assert part in text, part
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["project-header", "stories", "iterations", "progress", "project-events"])
def test_each_fragment_is_the_include_of_its_page(sign_in, imported, workspace, name):
    imported("demo")
    write_log(workspace / "demo", 1)
    read_again()
    text = sign_in().get("/projects/demo/", headers={"HX-Request": "true", "HX-Target": name}).content.decode()
    assert f'id="{name}"' in text
    assert "<html" not in text


def test_what_agents_wrote_is_inert_everywhere(sign_in, workspace):
    story = {
        "id": HOSTILE,
        "title": HOSTILE,
        "failed": True,
        "failureReason": HOSTILE,
        "description": HOSTILE,
        "acceptanceCriteria": [HOSTILE],
        "tags": [HOSTILE],
        "notes": HOSTILE,
    }
    root = write_project(
        workspace / "demo",
        userStories=[story],
        project=HOSTILE,
        branchName=HOSTILE,
        description=HOSTILE,
        progress=HOSTILE,
    )
    write_log(root, 1, HOSTILE)
    read_again()
    client = sign_in()
    from projects.models import Story

    paths = ["/", "/projects/", "/projects/demo/", Story.objects.get().get_absolute_url(), "/events/"]
    for path in [*paths, "/projects/demo/iterations/1/"]:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert HOSTILE not in answer.content.decode(), path
    download = client.get("/projects/demo/iterations/1/log")
    assert download.headers["Content-Type"].startswith("text/plain")
    assert download.headers["Content-Disposition"].startswith("attachment")
    assert asyncio.run(whole(download)) == HOSTILE.encode()


def test_a_story_page_links_what_it_depends_on(sign_in, workspace):
    stories = [
        {"id": "A", "title": "first", "passes": True},
        {"id": "B", "title": "second", "dependsOn": ["A", "gone"]},
    ]
    write_project(workspace / "demo", userStories=stories)
    read_again()
    text = sign_in().get("/projects/demo/stories/B/").content.decode()
    assert 'href="/projects/demo/stories/A/"' in text
    assert "gone" in text


@pytest.mark.parametrize(
    "path",
    [
        "/projects/none/",
        "/projects/demo/stories/none/",
        "/projects/demo/iterations/9/",
        "/projects/demo/iterations/99999999999999999999/",
        "/projects/demo/iterations/9/log",
        "/projects/..%2f..%2fetc/",
    ],
)
def test_what_is_not_there_is_404_with_a_page(sign_in, imported, path):
    imported("demo")
    answer = sign_in().get(path)
    assert answer.status_code == 404
    assert "<main" in answer.content.decode()


def test_an_iteration_has_its_log_and_its_neighbours(sign_in, imported, workspace):
    imported("demo")
    for number in (1, 2, 3):
        write_log(workspace / "demo", number, f"log {number}\n\x1b[32mok\x1b[0m\n")
    read_again()
    text = sign_in().get("/projects/demo/iterations/2/").content.decode()
    assert "log 2" in text
    assert 'class="ansi-fg-2"' in text
    assert "/iterations/1/" in text
    assert "/iterations/3/" in text
    (workspace / "demo/scripts/ralph/logs/iteration-2.log").unlink()
    assert "no log file" in sign_in().get("/projects/demo/iterations/2/").content.decode()


def test_rescan_is_an_operators(sign_in, monkeypatch):
    asked = []
    monkeypatch.setattr("projects.tasks.rescan_now", lambda: asked.append(1))
    assert sign_in("viewer").post("/projects/rescan").status_code == 403
    assert asked == []
    assert sign_in("operator").post("/projects/rescan").status_code == 302
    assert asked == [1]
