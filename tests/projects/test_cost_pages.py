"""The page /costs/, its export, and what project pages say about money."""

import csv
import io
import json
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.test import Client
from django.utils import timezone

from projects import importer
from projects.models import UsageEntry
from tests.projects.files import write_log, write_project

pytestmark = pytest.mark.django_db
FRAME = 6
HOSTILE = '<script>alert("1")</script>'


@pytest.fixture
def report(workspace):
    """Write usage records of a project (now, if they say no time) and read them in."""

    def make(name: str = "demo", *records: dict, raw: str = ""):
        root = write_project(workspace / name)
        lines = "".join(json.dumps({"ts": timezone.now().timestamp(), **record}) + "\n" for record in records)
        (root / "scripts/ralph/usage.jsonl").write_text(lines + raw)
        importer.rescan(now=timezone.now())
        return root

    return make


@async_to_sync
async def whole(response) -> str:
    return b"".join([piece async for piece in response]).decode()


def rows_of(response) -> list[list[str]]:
    return list(csv.reader(io.StringIO(whole(response), newline="")))


class TestPage:
    def test_with_nothing_reported_it_says_how(self, sign_in, workspace):
        text = sign_in().get("/costs/").content.decode()
        for part in ("No usage reported", "usage.jsonl", "manage.py loop DIR --agent", "--output-format json"):
            assert part in text, part

    def test_shows_every_sum_and_tells_unknown_apart(self, sign_in, report):
        report("alpha", {"cost": 1.2, "story": "US-1", "model": "large"}, {"story": "US-1"}, {"model": "large"})
        report("beta", {"story": "US-9", "is_error": True}, {"rate_limited": True, "iteration": 3})
        text = sign_in("viewer").get("/costs/").content.decode()
        for part in (
            "$1.20",
            "+ 2 unknown",
            "US-9",
            "large",
            "no model named",
            "no story named",
            "1 failed",
            "1 met a quota",
        ):
            assert part in text, part
        only = sign_in().get("/costs/?project=beta").content.decode()
        assert "$" not in only.partition("last 30 days")[2].partition("of all time")[0]
        assert "unknown" in only

    def test_the_window_and_the_project_stand_in_the_address(self, sign_in, report):
        old = timezone.now().timestamp() - 60 * 86400
        report("alpha", {"cost": 1}, {"cost": 5, "ts": old})
        client = sign_in()
        assert "$6.00" in client.get("/costs/?days=90").content.decode()
        text = client.get("/costs/?days=7&project=alpha").content.decode()
        assert 'href="/costs/?days=365&amp;project=alpha"' in text
        assert '<option value="alpha" selected>' in text
        assert "/costs/export.csv?days=7&amp;project=alpha" in text
        for query in ("?days=x", "?days=-1", "?days=99999", "?project=nobody", "?project=%25"):
            assert client.get(f"/costs/{query}").status_code == 200

    def test_a_window_without_runs_says_so(self, sign_in, report):
        report("alpha", {"cost": 1, "ts": timezone.now().timestamp() - 60 * 86400})
        assert "No run in the last 7 days" in sign_in().get("/costs/?days=7").content.decode()

    def test_rejected_lines_are_told(self, sign_in, report):
        report("alpha", {"cost": 1}, raw="nonsense\n[]\n")
        report("beta", raw="nonsense\n")
        client = sign_in()
        text = client.get("/costs/").content.decode()
        assert "2 lines of usage.jsonl are not counted" in text
        assert "1 line of usage.jsonl is not counted" in text
        assert "1 line of usage.jsonl" not in client.get("/costs/?project=alpha").content.decode()
        assert "usage.jsonl: 2 lines are not counted" in client.get("/projects/alpha/").content.decode()

    def test_is_live_as_the_fragment_of_itself(self, sign_in, report):
        report("alpha", {"cost": 1})
        client = sign_in()
        assert 'data-live-url="/costs/?days=7"' in client.get("/costs/?days=7").content.decode()
        text = client.get("/costs/?days=7", headers={"HX-Request": "true", "HX-Target": "costs"}).content.decode()
        assert 'id="costs"' in text
        assert "<html" not in text
        # What names the filter is fetched with it.
        assert "/costs/export.csv?days=7" in text
        assert 'href="/costs/?days=90"' in text

    def test_costs_the_same_however_much_there_is(self, sign_in, report, django_assert_max_num_queries):
        for each in range(20):
            report(f"p{each}", *({"cost": 1, "story": f"US-{n}", "model": f"m{n}"} for n in range(30)))
        client = sign_in()
        with django_assert_max_num_queries(FRAME + 6):
            text = client.get("/costs/?days=365").content.decode()
        assert text.count('class="share"') == 20 + 25 + 25

    def test_what_agents_wrote_is_inert(self, sign_in, report):
        report("alpha", {"cost": 1, "story": HOSTILE, "model": HOSTILE, "session_id": HOSTILE})
        client = sign_in()
        for path in ("/costs/", "/projects/alpha/", "/costs/?project=" + HOSTILE):
            text = client.get(path).content.decode()
            assert HOSTILE not in text, path
        assert "&lt;script&gt;" in client.get("/costs/").content.decode()

    def test_nobody_sees_it_without_signing_in(self):
        for path in ("/costs/", "/costs/export.csv"):
            assert Client().get(path).status_code == 302

    def test_it_is_in_the_navigation(self, sign_in):
        assert '<a href="/costs/" aria-current="page">' in sign_in().get("/costs/").content.decode()


class TestExport:
    def test_entries_as_they_are(self, sign_in, report):
        report(
            "alpha",
            {"ts": timezone.now().isoformat(), "cost": 0.0000001, "story": "US-1", "iteration": 2, "session_id": "s"},
            {"model": 'a,"b"', "is_error": True},
        )
        answer = sign_in("viewer").get("/costs/export.csv?days=7")
        assert answer["Content-Type"] == "text/csv; charset=utf-8"
        assert answer["Content-Disposition"].startswith('attachment; filename="andon-costs-')
        header, first, second = rows_of(answer)
        assert header[:5] == ["at", "project", "story", "iteration", "cost_usd"]
        one, two = (dict(zip(header, row, strict=True)) for row in (first, second))
        assert (one["project"], one["story"], one["iteration"], one["cost_usd"]) == (
            "alpha",
            "US-1",
            "2",
            "0.000000100",
        )
        assert one["at"].endswith("Z")
        assert (two["cost_usd"], two["input_tokens"], two["model"], two["failed"]) == ("", "", 'a,"b"', "true")

    @pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0"])
    def test_a_cell_is_no_formula(self, sign_in, report, text):
        report("alpha", {"story": text, "model": text, "session_id": text, "run": text})
        [header, row] = rows_of(sign_in().get("/costs/export.csv"))
        cells = dict(zip(header, row, strict=True))
        assert [cells[name] for name in ("story", "model", "session", "run")] == [f"'{text}"] * 4

    def test_a_tab_is_no_formula_either(self, sign_in, report):
        report("alpha", {"cost": 1})
        UsageEntry.objects.update(model="\t=1", story_key="\r=1")
        [header, row] = rows_of(sign_in().get("/costs/export.csv"))
        cells = dict(zip(header, row, strict=True))
        assert (cells["model"], cells["story"]) == ("'\t=1", "'\r=1")

    def test_window_and_project(self, sign_in, report):
        now = timezone.now().timestamp()
        report("alpha", *({"cost": day, "ts": now - day * 86400} for day in (0, 3, 40)))
        report("beta", {"cost": 7})
        client = sign_in()
        assert [row[4] for row in rows_of(client.get("/costs/export.csv?days=7&project=alpha"))[1:]] == [
            "3.000000000",
            "0.000000000",
        ]
        assert len(rows_of(client.get("/costs/export.csv?days=365"))) == 5

    def test_all_of_many_pages(self, sign_in, report, monkeypatch):
        monkeypatch.setattr("projects.costs.EXPORT_PAGE", 10)
        now = timezone.now().timestamp()
        # Many of one moment: pages go on between them.
        report("alpha", *({"cost": each, "ts": now - each // 25} for each in range(95)))
        rows = rows_of(sign_in().get("/costs/export.csv"))[1:]
        assert sorted(float(row[4]) for row in rows) == list(range(95))
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)


class TestProjectPages:
    def test_iterations_show_their_cost(self, sign_in, report):
        root = report("demo", {"cost": 0.25, "iteration": 1}, {"iteration": 2}, {"cost": 2, "iteration": 77})
        for each in (1, 2, 3):
            write_log(root, each, at=timezone.now() - timedelta(minutes=40 - 10 * each))
        importer.rescan(now=timezone.now())
        client = sign_in()
        text = client.get("/projects/demo/").content.decode()
        assert "$2.25 + 1 unknown in all" in text
        assert "the dearest cost $0.25" in text
        for path in ("/projects/demo/", "/projects/demo/iterations/"):
            rows = client.get(path).content.decode().partition('id="it1"')[0]
            assert "$0.25" in client.get(path).content.decode()
            assert rows.count("Nothing was reported") + rows.count("Reported when it ends") == 1
            assert "unknown: its report names no cost" in rows

    def test_without_usage_nothing_is_said_about_money(self, sign_in, imported, workspace):
        imported("demo")
        write_log(workspace / "demo", 1)
        importer.rescan(now=timezone.now())
        text = sign_in().get("/projects/demo/").content.decode()
        assert "in all" not in text
        assert "$" not in text.partition('id="iterations"')[2].partition("</section>")[0]

    def test_admin_reads_entries(self, sign_in, report):
        report("demo", {"cost": 0.25, "story": HOSTILE})
        client = sign_in("admin")
        text = client.get("/admin/projects/usageentry/").content.decode()
        assert "0.25" in text
        assert HOSTILE not in text
        assert client.get("/admin/projects/usageentry/add/").status_code == 403
