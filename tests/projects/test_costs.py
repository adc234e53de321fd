"""Windows and sums: the site's days, what is unknown, and a bounded number of queries."""

import itertools
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from django.test import Client

from config.environment import Nonsense, read
from projects import costs
from projects.days import wanted_days, window, zone
from projects.models import Iteration, Project, UsageEntry
from tests.projects.files import write_log

number = itertools.count()


@pytest.fixture
def add(db, now):
    """Write entries of a project; `ago` is days before `now`."""

    def make(slug: str = "demo", cost: object = 1, *, ago: float = 0, **facts: object) -> UsageEntry:
        project, _ = Project.objects.get_or_create(
            slug=slug, defaults={"node": "n", "path": f"/w/{slug}", "name": slug, "found_at": now, "ralph": True}
        )
        facts.setdefault("at", now - timedelta(days=ago))
        amount = None if cost is None else Decimal(str(cost))
        return UsageEntry.objects.create(project=project, key=f"k{next(number)}", cost=amount, **facts)

    return make


class TestWindow:
    @pytest.mark.parametrize(
        ("text", "days"),
        [
            *[("1", 1), ("7", 7), ("30", 30), ("365", 365), ("366", 365), ("9" * 400, 365), (" 14 ", 14), ("007", 7)],
            *[("", 7), ("0", 7), ("00", 7), ("-1", 7), ("1.5", 7), ("words", 7), ("²", 7), ("٣", 7), ("1e2", 7)],
        ],
    )
    def test_days_that_were_asked_for(self, text, days):
        assert wanted_days(text) == days

    @pytest.mark.parametrize(
        ("zone", "today", "start"),
        [
            ("UTC", date(2026, 11, 20), datetime(2026, 11, 14, tzinfo=UTC)),
            ("Pacific/Auckland", date(2026, 11, 21), datetime(2026, 11, 14, 11, tzinfo=UTC)),
            ("America/Los_Angeles", date(2026, 11, 20), datetime(2026, 11, 14, 8, tzinfo=UTC)),
        ],
    )
    def test_includes_today_in_the_sites_zone(self, settings, now, zone, today, start):
        settings.TIME_ZONE = zone
        span = window(7, now)
        assert (span.today, span.first, span.start) == (today, today - timedelta(days=6), start)

    def test_the_zone_comes_from_the_environment(self, tmp_path):
        base = {"ANDON_HOME": str(tmp_path / "home"), "ANDON_WORKSPACE": str(tmp_path)}
        assert read(base).time_zone == "UTC"
        assert read({**base, "ANDON_TIME_ZONE": " Europe/Berlin "}).time_zone == "Europe/Berlin"
        for name in ("Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "+02:00"):
            with pytest.raises(Nonsense, match="ANDON_TIME_ZONE"):
                read({**base, "ANDON_TIME_ZONE": name})


class TestWords:
    @pytest.mark.parametrize(
        ("added", "shown"),
        [
            (costs.Sum(), "$0.00"),
            (costs.Sum(Decimal("1.2"), 1), "$1.20"),
            (costs.Sum(Decimal("1.2"), 3, 0, 2), "$1.20 + 2 unknown"),
            (costs.Sum(None, 2, None, 2), "unknown"),
            (costs.Sum(Decimal(0), 1), "$0.00"),
            (costs.Sum(Decimal("1234567.891"), 1), "$1,234,567.89"),
            (costs.Sum(Decimal("0.0123"), 1), "$0.012"),
            (costs.Sum(Decimal("0.00042"), 1), "$0.00042"),
            (costs.Sum(Decimal("0.000001"), 1), "under $0.0001"),
        ],
    )
    def test_unknown_is_never_nothing(self, added, shown):
        assert added.shown == shown

    @pytest.mark.parametrize(
        ("count", "shown"),
        [
            (0, "0"),
            (999, "999"),
            (1000, "1 k"),
            (12_345, "12.3 k"),
            (999_900, "1,000 k"),
            (4_560_000, "4.56 M"),
            (10**15, "1,000 T"),
        ],
    )
    def test_counts_are_short(self, count, shown):
        assert costs.short(count) == shown


class TestReport:
    def test_sums_by_everything(self, add, now):
        add("a", "0.10", story_key="US-1", model="m", input_tokens=5, cache_read_tokens=2)
        add("a", "0.20", ago=1, story_key="US-1", model="m", failed=True)
        add("a", None, ago=1, story_key="US-2", model="n", rate_limited=True)
        add("b", None, ago=6, model="n")
        add("b", 4, ago=7, story_key="US-1")
        add("b", 8, ago=-1)
        found = costs.report(7, now)
        assert found.today == costs.Sum(Decimal("0.10"), 1, 7, 0, 0, 0)
        assert found.total == costs.Sum(Decimal("0.30"), 4, 7, 2, 1, 1)
        assert found.ever == costs.Sum(Decimal("12.30"), 6, 7, 2, 1, 1)
        assert [(line.name, line.sum.shown, line.share) for line in found.by_project] == [
            ("a", "$0.30 + 1 unknown", 100),
            ("b", "unknown", 0),
        ]
        assert [(line.group, line.name, line.sum.runs) for line in found.by_story] == [
            ("a", "US-1", 2),
            ("a", "US-2", 1),
            ("b", "", 1),
        ]
        assert [(line.name, line.sum.runs) for line in found.by_model] == [("m", 2), ("n", 2)]
        assert [bar.sum.runs for bar in found.by_day] == [1, 0, 0, 0, 0, 2, 1]
        assert [bar.height for bar in found.by_day][-2:] == [100, 50]
        assert found.dearest.day == date(2026, 11, 19)
        only = costs.report(7, now, "b")
        assert (only.total.shown, only.ever.shown, only.today) == ("unknown", "$12.00 + 1 unknown", costs.Sum())

    def test_money_does_not_drift(self, add, now):
        for _ in range(10):
            add(cost="0.1")
        assert costs.report(1, now).total.cost == 1

    def test_a_share_however_small_is_seen(self, add, now):
        add("a", 1000)
        add("b", "0.001")
        assert [line.share for line in costs.report(1, now).by_project] == [100, 1]

    @pytest.mark.parametrize(
        ("zone", "at", "day"),
        [
            ("Europe/Berlin", datetime(2026, 10, 24, 21, 59, 59, 999_999, tzinfo=UTC), date(2026, 10, 24)),
            ("Europe/Berlin", datetime(2026, 10, 24, 22, 0, tzinfo=UTC), date(2026, 10, 25)),
            ("Europe/Berlin", datetime(2026, 10, 25, 22, 59, 59, tzinfo=UTC), date(2026, 10, 25)),
            ("Europe/Berlin", datetime(2026, 10, 25, 23, 0, tzinfo=UTC), date(2026, 10, 26)),
            ("America/New_York", datetime(2026, 11, 2, 4, 59, 59, tzinfo=UTC), date(2026, 11, 1)),
            ("America/New_York", datetime(2026, 11, 2, 5, 0, tzinfo=UTC), date(2026, 11, 2)),
            ("Asia/Kathmandu", datetime(2026, 11, 19, 18, 14, tzinfo=UTC), date(2026, 11, 19)),
            ("Asia/Kathmandu", datetime(2026, 11, 19, 18, 15, tzinfo=UTC), date(2026, 11, 20)),
            ("UTC", datetime(2026, 11, 20, tzinfo=UTC), date(2026, 11, 20)),
        ],
    )
    @pytest.mark.parametrize("days", [40, 365])
    def test_days_are_the_sites_over_changes_of_the_clock(self, add, now, settings, zone, at, day, days):
        settings.TIME_ZONE = zone
        add(at=at)
        assert [bar.day for bar in costs.report(days, now).by_day if bar.sum.runs] == [day]

    def test_every_hour_of_a_year_is_on_its_day(self, add, now, settings):
        settings.TIME_ZONE = "Europe/Berlin"
        project = add().project
        UsageEntry.objects.all().delete()
        hours = [now - timedelta(hours=hour) for hour in range(360 * 24)]
        UsageEntry.objects.bulk_create(UsageEntry(project=project, key=str(at), at=at, cost=1) for at in hours)
        found = {bar.day: bar.sum.runs for bar in costs.report(365, now).by_day if bar.sum.runs}
        expected: dict[date, int] = {}
        for at in hours:
            day = at.astimezone(zone()).date()
            expected[day] = expected.get(day, 0) + 1
        assert found == expected

    def test_a_hundred_thousand_entries_take_five_queries(self, add, now, django_assert_num_queries):
        projects = [add(f"p{each}").project for each in range(10)]
        UsageEntry.objects.bulk_create(
            (
                UsageEntry(
                    project=projects[each % 10],
                    key=f"e{each}",
                    at=now - timedelta(minutes=each),
                    cost=None if each % 5 == 0 else Decimal("0.01"),
                    story_key=f"US-{each % 300}",
                    model=f"m{each % 3}",
                )
                for each in range(100_000)
            ),
            batch_size=5000,
        )
        with django_assert_num_queries(5):
            found = costs.report(365, now)
        assert (found.total.runs, found.total.unknown, found.total.cost) == (100_010, 20_000, Decimal("810.00"))
        assert len(found.by_story) == costs.STORIES_SHOWN
        with django_assert_num_queries(3):
            assert costs.document(365, now)["window_runs"] == 100_010


class TestBill:
    @pytest.fixture
    def demo(self, imported, make_project, now):
        root = make_project("demo")
        for each in (1, 2, 3):
            write_log(root, each, at=now + timedelta(minutes=10 * each))
        return imported("demo")

    def entry(self, project, iteration, at, cost=1, **facts):
        UsageEntry.objects.create(
            project=project, key=f"k{next(number)}", iteration=iteration, at=at, cost=cost, **facts
        )

    def test_what_was_reported_since_an_iteration_began_is_its_cost(self, demo, now, django_assert_num_queries):
        self.entry(demo, 1, now + timedelta(minutes=10))
        self.entry(demo, 2, now + timedelta(minutes=15), 2, input_tokens=5)
        self.entry(demo, 2, now + timedelta(minutes=20), None)
        # Of a loop that counted from 1 before.
        self.entry(demo, 2, now - timedelta(days=2), 40)
        self.entry(demo, 1, now - timedelta(days=2), 40)
        self.entry(demo, 9, now, 40)
        rows = list(Iteration.objects.filter(project=demo).order_by("number"))
        with django_assert_num_queries(1):
            total = costs.bill(demo, rows)
        assert [row.spent and row.spent.shown for row in rows] == ["$1.00", "$2.00 + 1 unknown", None]
        assert rows[1].spent.tokens == 5
        assert total.shown == "$123.00 + 1 unknown"

    def test_of_nothing(self, demo):
        assert costs.bill(demo, []) == costs.Sum()

    def test_iterations_in_rest(self, demo, now, client_of):
        self.entry(demo, 1, now + timedelta(minutes=10), Decimal("0.25"), output_tokens=9)
        self.entry(demo, 2, now + timedelta(minutes=20), None)
        rows = client_of("viewer").get("/api/ralph/demo/iterations").json()["iterations"]
        assert [(row["number"], row["cost_usd"], row["tokens"]) for row in rows] == [
            (3, None, None),
            (2, None, None),
            (1, 0.25, 9),
        ]


@pytest.mark.django_db
class TestRest:
    @pytest.fixture
    def today(self, monkeypatch, now):
        monkeypatch.setattr("projects.api.timezone.now", lambda: now)

    def test_the_document(self, add, now, monkeypatch, client_of):
        client = client_of("viewer")
        monkeypatch.setattr("projects.api.timezone.now", lambda: now)
        add("a", "0.5", input_tokens=10)
        add("a", None, ago=3)
        add("b", None, ago=3)
        add("b", 2, ago=30)
        assert client.get("/api/ralph/usage").json() == {
            "today": "2026-11-20",
            "today_cost": 0.5,
            "today_runs": 1,
            "window_days": 7,
            "window_cost": 0.5,
            "window_runs": 3,
            "by_project": {
                "a": {"cost": 0.5, "runs": 2, "tokens": 10, "unknown_cost_runs": 1},
                "b": {"cost": None, "runs": 1, "tokens": None, "unknown_cost_runs": 1},
            },
            "by_day": {
                "2026-11-17": {"cost": None, "runs": 2, "tokens": None, "unknown_cost_runs": 2},
                "2026-11-20": {"cost": 0.5, "runs": 1, "tokens": 10, "unknown_cost_runs": 0},
            },
            "total_cost": 2.5,
            "total_runs": 4,
            "unknown_cost_runs": 2,
            "tokens": 10,
            "fetchedAt": now.isoformat(),
        }

    def test_of_nothing_it_is_zero_not_unknown(self, client_of):
        body = client_of("viewer").get("/api/ralph/usage").json()
        assert (body["today_cost"], body["window_cost"], body["total_cost"], body["by_day"]) == (0, 0, 0, {})

    @pytest.mark.parametrize(
        ("query", "days"),
        [("", 7), ("?days=30", 30), ("?days=0", 7), ("?days=x", 7), ("?days=9999", 365), ("?days=%00", 7)],
    )
    def test_days(self, client_of, query, days):
        assert client_of("viewer").get(f"/api/ralph/usage{query}").json()["window_days"] == days

    def test_a_bound_token_sees_its_project(self, add, client_of):
        add("mine", 1)
        add("other", 50)
        body = client_of("operator", project="mine").get("/api/ralph/usage?days=365").json()
        assert (body["total_cost"], list(body["by_project"])) == (1, ["mine"])
        assert "other" not in str(body)

    @pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
    def test_everybody_with_a_role_may_read(self, client_of, role):
        assert client_of(role).get("/api/ralph/usage").status_code == 200

    def test_nobody_else_may(self):
        answer = Client().get("/api/ralph/usage")
        assert (answer.status_code, answer.json()["error"]) == (401, "unauthenticated")

    def test_it_is_read_only(self, client_of):
        assert client_of("admin").post("/api/ralph/usage").status_code == 405
