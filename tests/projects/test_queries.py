"""What is derived from rows: status, ETA, what a loop works on, and the documents built of them."""

import itertools
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projects import queries
from projects.errors import Missing, Rejected
from projects.events import SWEEP, record, writing
from projects.models import Iteration, Project, Story
from projects.queries import Eta
from projects.states import ProjectStatus

PROJECT_KEYS = {
    "slug",
    "status",
    "running",
    "pid",
    "branchName",
    "storiesTotal",
    "storiesComplete",
    "storiesFailed",
    "storiesBlocked",
    "storiesRemaining",
    "currentStory",
    "lastIterAt",
    "etaMinutes",
    "stories",
    "stalled",
    "warnings",
    "revision",
    "error",
}
STORY_KEYS = {"id", "title", "passes", "failed", "blocked", "retries", "tags", "failureReason"}


def project(**fields) -> Project:
    return Project(**{"slug": "demo", "node": "test-node", "path": "/w/demo", "name": "demo", **fields})


def story(key: str, state: str = "pending", priority: int = 1, depends_on: tuple[str, ...] = ()) -> Story:
    return Story(key=key, position=0, title=key, state=state, priority=priority, depends_on=list(depends_on))


class TestStatus:
    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({}, "idle"),
            ({"total": 3, "passed": 1}, "idle"),
            ({"total": 3, "passed": 1, "failed": 1}, "idle"),
            ({"total": 3, "in_progress": 1}, "idle"),
            ({"total": 3, "passed": 3}, "complete"),
            ({"total": 3, "passed": 2, "failed": 1}, "failed"),
            ({"total": 3, "failed": 3}, "failed"),
            ({"total": 3, "failed": 1, "blocked": 2}, "failed"),
            ({"total": 3, "failed": 1, "blocked": 1}, "blocked"),
            ({"total": 3, "blocked": 1}, "blocked"),
            ({"total": 3, "passed": 2, "blocked": 1}, "blocked"),
            ({"total": 3, "passed": 3, "running": True}, "running"),
            ({"total": 3, "failed": 3, "running": True}, "running"),
            ({"running": True, "stalled": True}, "running"),
            ({"running": True, "error": "prd.json: invalid"}, "error"),
            ({"running": True, "error": "prd.json: invalid", "missing": True}, "missing"),
        ],
    )
    def test_first_match_wins(self, now, fields, status):
        missing = fields.pop("missing", False)
        row = project(**fields, missing_since=now if missing else None)
        assert queries.status_of(row) == status

    @given(st.lists(st.sampled_from(["passed", "failed", "blocked", "in_progress", "pending"]), max_size=6))
    def test_is_always_one_and_the_counts_add_up(self, states):
        counts = {name: states.count(name) for name in ("passed", "failed", "blocked", "in_progress")}
        row = project(total=len(states), **counts)
        assert queries.status_of(row) in ProjectStatus.values
        assert row.passed + row.failed + row.blocked + queries.remaining(row) == row.total
        assert (queries.status_of(row) == "complete") == (bool(states) and set(states) == {"passed"})


class TestEta:
    @pytest.mark.parametrize("durations", [[], [1.0], [1.0, 2.0]])
    def test_is_twelve_minutes_a_story_until_three_are_known(self, durations):
        assert queries.eta_of(project(total=5, passed=2, durations=durations)) == Eta(36)

    def test_is_the_median_and_a_range_then(self):
        row = project(total=4, passed=1, failed=1, durations=[60.0, 120.0, 600.0])
        assert queries.eta_of(row) == Eta(4, low=3, high=12)

    def test_of_even_pace(self):
        assert queries.eta_of(project(total=2, durations=[300.0] * 10)) == Eta(10, 10, 10)

    def test_is_at_least_a_minute(self):
        assert queries.eta_of(project(total=1, durations=[0.1, 0.1, 0.1])) == Eta(1, 1, 1)

    @pytest.mark.parametrize("fields", [{}, {"total": 2, "passed": 2}, {"total": 3, "failed": 1, "blocked": 2}])
    def test_is_none_when_nothing_is_open(self, fields):
        assert queries.eta_of(project(**fields)) is None

    @given(
        left=st.integers(1, 5000),
        durations=st.lists(st.floats(0.1, 21_600, allow_nan=False), min_size=3, max_size=10),
    )
    def test_lies_within_its_range(self, left, durations):
        eta = queries.eta_of(project(total=left, durations=durations))
        assert 1 <= eta.low <= eta.minutes <= eta.high


class TestStalled:
    def row(self, now, **fields):
        return project(running=True, **{"written_at": now, "loop_started_at": now - timedelta(days=1), **fields})

    @pytest.mark.parametrize(("quiet_s", "stalled"), [(0, False), (2160, False), (2161, True), (90_000, True)])
    def test_after_three_times_twelve_minutes(self, now, quiet_s, stalled):
        assert queries.is_stalled(self.row(now), now + timedelta(seconds=quiet_s)) is stalled

    def test_after_three_times_the_median(self, now):
        row = self.row(now, durations=[10.0, 20.0, 60.0])
        assert not queries.is_stalled(row, now + timedelta(seconds=60))
        assert queries.is_stalled(row, now + timedelta(seconds=61))

    def test_not_when_nothing_runs(self, now):
        row = project(running=False, written_at=now)
        assert not queries.is_stalled(row, now + timedelta(days=30))

    def test_not_when_the_loop_has_just_started_on_old_files(self, now):
        row = self.row(now, written_at=now - timedelta(days=30), loop_started_at=now)
        assert not queries.is_stalled(row, now + timedelta(seconds=60))
        assert queries.is_stalled(row, now + timedelta(hours=1))

    def test_of_a_loop_that_wrote_nothing(self, now):
        row = self.row(now, written_at=None, loop_started_at=now)
        assert queries.is_stalled(row, now + timedelta(hours=1))
        row = self.row(now, written_at=None, loop_started_at=None)
        assert not queries.is_stalled(row, now + timedelta(hours=1))


class TestCurrentStory:
    @pytest.mark.parametrize(
        ("stories", "key"),
        [
            ([], None),
            ([story("a", "passed"), story("b", "failed"), story("c", "blocked")], None),
            ([story("b", priority=2), story("a", priority=3), story("c", priority=1)], "c"),
            ([story("b"), story("a")], "a"),
            ([story("a", "in_progress", priority=2), story("b", priority=1)], "b"),
            ([story("a", depends_on=("b",)), story("b", priority=9)], "b"),
            ([story("a", depends_on=("b",)), story("b", "passed")], "a"),
            ([story("a", depends_on=("b",)), story("b", "failed")], None),
            ([story("a", depends_on=("b", "c")), story("b", "passed"), story("c", "in_progress", 5)], "c"),
            ([story("a", depends_on=("nobody",))], "a"),
            ([story("a", depends_on=("a",))], None),
            ([story("a", depends_on=("b",)), story("b", depends_on=("a",))], None),
        ],
    )
    def test_is_the_lowest_open_one_that_waits_for_nothing(self, stories, key):
        for order in itertools.permutations(stories):
            found = queries.current_row(list(order))
            assert (found and found.key) == key

    def test_only_while_running(self):
        assert queries.current_of(project(running=True), [story("a")]).key == "a"
        assert queries.current_of(project(running=False), [story("a")]) is None


@pytest.mark.django_db
class TestSnapshot:
    def test_of_nothing(self, now):
        assert queries.snapshot(now) == {"projects": [], "fetchedAt": "2026-11-20T12:00:00+00:00", "count": 0}

    def test_every_key_is_always_there(self, imported, now):
        imported("empty", states=())
        imported("full", states=("passed", "failed", "blocked", "in_progress", "pending"))
        Project.objects.filter(slug="full").update(
            running=True, pid=7, error="broken", stalled=True, last_iteration_at=now
        )
        document = queries.snapshot(now)
        assert set(document) == {"projects", "fetchedAt", "count"}
        assert [row["slug"] for row in document["projects"]] == ["empty", "full"]
        for row in document["projects"]:
            assert set(row) == PROJECT_KEYS
            for item in row["stories"]:
                assert set(item) == STORY_KEYS

    def test_values(self, imported, now):
        row = imported("demo", states=("passed", "failed", "blocked", "in_progress", "pending"))
        Project.objects.filter(pk=row.pk).update(
            running=True, pid=7, written_at=now, last_iteration_at=now, durations=[60.0, 60.0, 60.0]
        )
        Story.objects.filter(key="US-004").update(tags=["api"], retries=2)
        [shown] = queries.snapshot(now)["projects"]
        stories = shown.pop("stories")
        assert shown == {
            "slug": "demo",
            "status": "running",
            "running": True,
            "pid": 7,
            "branchName": "ralph/demo",
            "storiesTotal": 5,
            "storiesComplete": 1,
            "storiesFailed": 1,
            "storiesBlocked": 1,
            "storiesRemaining": 2,
            "currentStory": {"id": "US-004", "title": "Story 4", "tags": ["api"], "retries": 2},
            "lastIterAt": "2026-11-20T12:00:00+00:00",
            "etaMinutes": 2,
            "stalled": False,
            "warnings": [],
            "revision": row.revision,
            "error": None,
        }
        assert [item["id"] for item in stories] == ["US-001", "US-002", "US-003", "US-004", "US-005"]
        assert stories[1] == {
            "id": "US-002",
            "title": "Story 2",
            "passes": False,
            "failed": True,
            "blocked": False,
            "retries": 0,
            "tags": [],
            "failureReason": "reason 2",
        }

    def test_leaves_out_what_is_no_ralph_project_or_missing(self, imported, workspace, now):
        imported("demo")
        (workspace / "plain/.git").mkdir(parents=True)
        imported("gone")
        Project.objects.filter(slug="gone").update(missing_since=now)
        assert [row["slug"] for row in queries.snapshot(now)["projects"]] == ["demo"]

    def test_of_one_project(self, imported, now):
        imported("demo")
        imported("demo2")
        assert [row["slug"] for row in queries.snapshot(now, "demo")["projects"]] == ["demo"]
        assert queries.snapshot(now, "dem")["count"] == 0

    def test_takes_two_queries(self, imported, make_project, now, django_assert_num_queries):
        for number in range(4):
            make_project(f"p{number}")
        imported("demo")
        Project.objects.update(running=True, pid=7)
        with django_assert_num_queries(2):
            assert queries.snapshot(now)["count"] == 5


@pytest.mark.django_db
class TestViews:
    def test_take_one_query_for_those_that_run(self, imported, make_project, now, django_assert_num_queries):
        for number in range(4):
            make_project(f"p{number}")
        imported("demo")
        Project.objects.exclude(slug="p0").update(running=True, pid=7)
        with django_assert_num_queries(2):
            shown = {view.slug: view for view in queries.views(queries.known(), now)}
            for view in shown.values():
                assert view.remaining == view.pending == 2
                assert (view.current and view.current.get_absolute_url()) == (
                    None if view.slug == "p0" else f"/projects/{view.slug}/stories/US-002/"
                )
        assert shown["p0"].eta is None
        assert shown["p1"].eta == Eta(24)
        assert shown["p0"].status == "idle"

    def test_a_view_tells_how_long_it_is_quiet(self, now):
        [view] = queries.views([project(written_at=now - timedelta(minutes=5))], now)
        assert view.quiet_for == 300
        [view] = queries.views([project()], now)
        assert view.quiet_for is None


@pytest.mark.django_db
class TestEvents:
    @pytest.fixture
    def log(self, now):
        def tell(*rows):
            with writing():
                for kind, subject, slug in rows:
                    record(kind, subject, by=SWEEP, now=now, project=slug)

        tell(
            ("story.passed", "story:demo/US-1", "demo"),
            ("story.failed", "story:demo/US-2", "demo"),
            ("storybook.opened", "story:other/US-1", "other"),
            ("loop.started", "project:demo", "demo"),
        )

    @pytest.mark.parametrize(
        ("filters", "kinds"),
        [
            ({}, ["loop.started", "storybook.opened", "story.failed", "story.passed"]),
            ({"kind": "story."}, ["story.failed", "story.passed"]),
            ({"kind": "story.passed"}, ["story.passed"]),
            ({"kind": "story"}, []),
            ({"project": "demo"}, ["loop.started", "story.failed", "story.passed"]),
            ({"project": "dem"}, []),
            ({"subject": "story:demo/US-2"}, ["story.failed"]),
            ({"actor": "andon", "kind": "loop."}, ["loop.started"]),
            ({"actor": "user:anna"}, []),
            ({"actor": "", "kind": "", "project": "", "subject": "project:demo"}, ["loop.started"]),
            ({"subject": "story:demo/\x00"}, []),
            ({"kind": "story\x00."}, []),
        ],
    )
    def test_filters(self, log, filters, kinds):
        found = [event.kind for event in queries.events(filters, before=None, limit=10)]
        assert found == kinds

    def test_newest_first_from_a_place_on(self, log):
        rows = queries.events({}, before=None, limit=2)
        assert [row.kind for row in rows] == ["loop.started", "storybook.opened"]
        assert [row.kind for row in queries.events({}, before=rows[-1].id, limit=9)] == ["story.failed", "story.passed"]

    def test_of_one_project(self, log, django_assert_num_queries):
        with django_assert_num_queries(1):
            rows = queries.events({"kind": "storybook.opened"}, before=None, limit=10, visible_to="demo")
        assert rows == []
        assert len(queries.events({}, before=None, limit=10, visible_to="demo")) == 3

    def test_of_a_subject(self, log, django_assert_num_queries):
        with django_assert_num_queries(1):
            [event] = queries.events_of_subject("story:demo/US-1")
        assert event.kind == "story.passed"


@pytest.mark.django_db
class TestLookup:
    def test_a_page_finds_any_project(self, imported, workspace):
        (workspace / "plain/.git").mkdir(parents=True)
        imported("demo")
        assert queries.get_project("plain").ralph is False
        for slug in ("absent", "plain\x00", "..", ""):
            with pytest.raises(Missing):
                queries.get_project(slug)
        with pytest.raises(Missing):
            queries.get_project("demo", visible_to="plain")

    @pytest.mark.parametrize(
        "slug", ["", "absent", "..", "a b", "demo\n", "demo/", "x" * 65, "dëmo", "demo\x00", "plain"]
    )
    def test_rest_refuses_what_is_no_ralph_project(self, imported, workspace, slug):
        (workspace / "plain/.git").mkdir(parents=True)
        imported("demo")
        with pytest.raises(Rejected) as refusal:
            queries.get_ralph_project(slug)
        assert refusal.value.code == "invalid-project-slug"

    def test_rest_hides_what_a_token_may_not_see(self, imported):
        imported("demo")
        assert queries.get_ralph_project("demo", "demo").slug == "demo"
        with pytest.raises(Rejected):
            queries.get_ralph_project("demo", "other")

    def test_iterations_newest_first(self, imported, now):
        row = imported("demo")
        Iteration.objects.bulk_create([Iteration(project=row, number=n, written_at=now) for n in (2, 10, 1)])
        assert [item.number for item in queries.iterations_of(row)] == [10, 2, 1]
