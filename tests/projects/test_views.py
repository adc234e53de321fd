"""Pages of projects, stories and iterations."""

import asyncio
from datetime import timedelta

import pytest
from django.utils import timezone

from projects import importer
from projects.models import Iteration
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


HOSTILE_SORTS = ["", "-", "--name", "nonsense", "-pk", "project__path", "%22%3E%3Cscript%3E", "name%0A", "?"]


class TestSorting:
    """Lists are sorted by the address: what it asks for, kept by filters, pages and fragments."""

    @pytest.fixture
    def projects(self, imported):
        imported("alpha", states=("passed", "pending", "pending", "pending"))
        imported("beta", states=("failed", "passed"))
        imported("gamma", states=("passed",))
        imported("empty", states=())

    def slugs(self, client, query: str) -> list[str]:
        return [view.slug for view in client.get(f"/projects/?{query}").context["projects"]]

    @pytest.mark.parametrize(
        ("sort", "slugs"),
        [
            ("-name", ["gamma", "empty", "beta", "alpha"]),
            ("status", ["beta", "alpha", "empty", "gamma"]),
            ("-passed", ["gamma", "beta", "alpha", "empty"]),
            ("passed", ["alpha", "beta", "gamma", "empty"]),
            ("-left", ["alpha", "beta", "empty", "gamma"]),
            *((sort, ["alpha", "beta", "empty", "gamma"]) for sort in HOSTILE_SORTS),
        ],
    )
    def test_projects(self, sign_in, projects, sort, slugs):
        assert self.slugs(sign_in(), f"sort={sort}") == slugs

    def test_of_projects_without_an_iteration_nothing_is_known(self, sign_in, projects, workspace):
        write_log(workspace / "gamma", 1)
        read_again()
        for sort in ("active", "-active"):
            assert self.slugs(sign_in(), f"sort={sort}") == ["gamma", "alpha", "beta", "empty"]

    def test_projects_keep_filter_order_and_page(self, sign_in, projects, monkeypatch):
        monkeypatch.setattr("projects.views.CARDS", 2)
        client = sign_in()
        text = client.get("/projects/?q=a&sort=-name").content.decode()
        assert 'href="?q=a&amp;sort=-name&amp;page=2"' in text
        assert 'data-live-url="/projects/?q=a&amp;sort=-name"' in text
        assert '<option value="-name" selected>Name ↓</option>' in text
        assert 'href="/projects/?sort=-name">Clear' in text
        pages = [self.slugs(client, f"q=a&sort=-name&page={number}") for number in (1, 2)]
        assert pages == [["gamma", "beta"], ["alpha"]]

    @pytest.mark.parametrize(
        ("sort", "keys"),
        [
            ("", "CABD"),
            ("-position", "DBAC"),
            ("state", "ADBC"),
            ("-state", "CBDA"),
            ("key", "ABCD"),
            ("priority", "DABC"),
            ("-retries", "BCAD"),
            *((sort, "CABD") for sort in HOSTILE_SORTS),
        ],
    )
    def test_stories(self, sign_in, workspace, sort, keys):
        stories = [
            {"id": "C", "passes": True, "priority": 9},
            {"id": "A", "failed": True, "priority": 2},
            {"id": "B", "priority": 2, "retries": 3},
            {"id": "D", "blocked": True, "priority": 1},
        ]
        write_project(workspace / "demo", userStories=stories)
        read_again()
        answer = sign_in().get(f"/projects/demo/?sort={sort}")
        assert "".join(story.key for story in answer.context["stories"]) == keys
        assert ("In file order" in answer.content.decode()) == (keys != "CABD")

    def test_only_in_file_order_have_stories_the_heads_of_their_groups(self, sign_in, workspace):
        groups = [{"title": name, "stories": [{"id": f"{name}{at}", "title": "t"} for at in (1, 2)]} for name in "xy"]
        write_project(workspace / "demo", userStories=None, milestones=groups)
        read_again()
        client = sign_in()
        for sort, heads in (("", 2), ("key", 0), ("-position", 2)):
            text = client.get(f"/projects/demo/?sort={sort}").content.decode()
            assert text.count('scope="rowgroup"') == heads
            assert text.count('<div class="sub">x</div>') == (0 if heads else 2)

    def test_stories_are_paged_in_their_order(self, sign_in, imported, monkeypatch):
        imported("demo", states=("pending",) * 5)
        monkeypatch.setattr("projects.views.STORIES_PAGE", 2)
        client = sign_in()
        path = "/projects/demo/?sort=-state"
        pages = [client.get(f"{path}&page={number}").context["stories"] for number in (1, 2, 3)]
        assert [story.key for shown in pages for story in shown] == [f"US-{number:03}" for number in (5, 4, 3, 2, 1)]
        text = client.get(f"{path}&page=2", headers={"HX-Request": "true", "HX-Target": "stories"}).content.decode()
        for part in (
            'data-live-url="/projects/demo/?sort=-state&amp;page=2"',
            'href="?sort=-state&amp;page=3"',
            'aria-sort="descending"><a class="sort" href="?sort=state">',
        ):
            assert part in text, part

    @pytest.fixture
    def runs(self, imported, now):
        project = imported("demo")
        for number, (story, start, took, size) in enumerate(
            [("B", 30, 60, 5), ("A", 20, None, 7), ("", None, None, 6), ("A", 10, 90, 5)], 1
        ):
            begun = None if start is None else now + timedelta(minutes=start)
            Iteration.objects.create(
                project=project,
                number=number,
                story_key=story,
                started_at=begun,
                written_at=now,
                ended_at=begun and took and begun + timedelta(seconds=took),
                size=size,
            )

    @pytest.mark.parametrize(
        ("sort", "numbers"),
        [
            ("number", [1, 2, 3, 4]),
            ("started", [4, 2, 1, 3]),
            ("-started", [1, 2, 4, 3]),
            ("story", [3, 2, 4, 1]),
            ("-took", [4, 1, 2, 3]),
            ("took", [1, 4, 2, 3]),
            ("-size", [2, 3, 1, 4]),
            *((sort, [4, 3, 2, 1]) for sort in HOSTILE_SORTS),
        ],
    )
    def test_iterations(self, sign_in, runs, sort, numbers):
        shown = sign_in().get(f"/projects/demo/iterations/?sort={sort}").context["iterations"]
        assert [row.number for row in shown] == numbers

    def test_iterations_are_paged_in_their_order(self, sign_in, runs, monkeypatch, django_assert_max_num_queries):
        monkeypatch.setattr("projects.views.ITERATIONS_PAGE", 1)
        client = sign_in()
        shown = [
            client.get(f"/projects/demo/iterations/?sort=-took&page={number}").context["iterations"][0].number
            for number in (1, 2, 3, 4)
        ]
        assert shown == [4, 1, 2, 3]
        with django_assert_max_num_queries(FRAME + 4):
            text = client.get("/projects/demo/iterations/?sort=-took").content.decode()
        for part in (
            'data-live-url="/projects/demo/iterations/?sort=-took"',
            'href="?sort=-took&amp;page=2"',
            'class="num" aria-sort="descending"><a class="sort" href="?sort=took">Took<span aria-hidden="true">↓<',
        ):
            assert part in text, part
        assert text.count("aria-sort=") == 1

    @pytest.mark.parametrize("path", ["/projects/demo/", "/projects/demo/stories/US-001/"])
    def test_the_last_iterations_are_the_last_whatever_else_is_sorted(self, sign_in, runs, path):
        Iteration.objects.update(story_key="US-001")
        text = sign_in().get(f"{path}?sort=number").content.decode()
        panel = text[text.rindex("<table", 0, text.index('id="it4"')) :]
        assert '<th scope="col" class="num">Took</th>' in panel
        assert 'class="sort"' not in panel
        assert panel.index('id="it4"') < panel.index('id="it1"')
