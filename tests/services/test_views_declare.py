"""Declaring a service by form or by pasting a file: the reason beside the field, and nothing changed by a check."""

import json
import re

import pytest

from projects.models import Event, Project
from services.models import ManagedProcess, WorkerHost
from tests.services.rows import healthy, play_worker, tick, with_git

pytestmark = pytest.mark.django_db


@pytest.fixture
def demo(imported) -> Project:
    return with_git(imported("demo"))


def text_of(answer) -> str:
    return answer.content.decode()


class TestDeclare:
    PATH = "/services/new/"

    @pytest.fixture(autouse=True)
    def _worker(self, monkeypatch, demo):
        tick()
        play_worker(monkeypatch)

    def typed(self, **changed: str) -> dict[str, str]:
        return {
            "project": "demo",
            "name": "web",
            "cmd": "bash",
            "args": "-c\nsleep 9",
            "env": "SITE=top-value\nEMPTY=",
            "ports": "3000, 3001",
            "ttl_minutes": "30",
            "restart": "always",
            "stop_grace_s": "5",
            "check_type": "http",
            "url": "http://127.0.0.1:3000/",
            "expect_status": "200",
            "timeout_s": "2.5",
            "act": "declare",
            **changed,
        }

    def test_declares_what_was_typed(self, sign_in, demo):
        answer = sign_in().post(self.PATH, self.typed())
        assert (answer.status_code, answer["Location"]) == (302, "/services/demo/web/")
        row = ManagedProcess.objects.get()
        assert (row.cmd, row.args, row.ports, row.ttl_minutes) == ("bash", ["-c", "sleep 9"], [3000, 3001], 30)
        assert row.env == {"SITE": "top-value", "EMPTY": ""}
        assert (row.healthcheck["timeout_s"], row.healthcheck["period_s"]) == (2.5, 30)
        assert (row.restart, row.stop_grace_s, row.cwd) == ("always", 5, demo.path)
        assert row.declared_by.startswith("user:operator")

    @pytest.mark.parametrize(
        ("field", "typed", "reason"),
        [
            ("name", "", "name-missing"),
            ("name", "Web", "name-not-kebab-case (Web)"),
            ("name", "x" * 65, "name-too-long (&gt;64)"),
            ("cmd", "vim", "cmd-not-on-allowlist (vim)"),
            ("args", "x\n" * 65, "args-too-many (&gt;64)"),
            ("cwd", "relative", "cwd-not-absolute"),
            ("cwd", "/etc", "cwd-outside-allowed-root"),
            ("env", "GITHUB_TOKEN=x", "env-key-denied (GITHUB_TOKEN)"),
            ("env", "2=x", "env-key-invalid-shape (2)"),
            ("env", "nothing", "Write KEY=value: nothing"),
            ("env", "A=1\nA=2", "A stands there twice."),
            ("ports", "80", "port-invalid (80)"),
            ("ports", "3000 3000", "port-duplicate (3000)"),
            ("ports", "３０００", "port-invalid (３０００)"),
            ("ttl_minutes", "soon", "ttl-invalid"),
            ("ttl_minutes", "1.5", "ttl-invalid"),
            ("ttl_minutes", "1441", "ttl-too-long (&gt;1440min)"),
            ("stop_grace_s", "61", "stop-grace-invalid"),
            ("url", "", "healthcheck-url-missing"),
            ("url", "/x", "healthcheck-url-not-absolute"),
            ("expect_status", "", "healthcheck-expect-status-missing"),
            ("expect_status", "99", "healthcheck-expect-status-invalid"),
            ("timeout_s", "", "healthcheck-timeout-invalid"),
            ("interval_s", "0", "healthcheck-interval-invalid"),
            ("period_s", "9" * 40, "healthcheck-period-invalid"),
            ("failure_threshold", "0", "healthcheck-threshold-invalid"),
            ("name", "a\x00b", "Null characters are not allowed."),
            ("project", "nobody", "Select a valid choice"),
        ],
    )
    def test_a_mistake_is_told_beside_its_field_and_in_the_summary(self, sign_in, field, typed, reason):
        client = sign_in()
        client.post(self.PATH, self.typed(**{field: typed, "act": "check"}))
        assert not Event.objects.filter(kind="service.rejected").exists()
        answer = client.post(self.PATH, self.typed(**{field: typed}))
        text = text_of(answer)
        assert answer.status_code == 422
        [beside] = [part.partition("</ul>")[0] for part in text.split(f'<ul class="errors" id="id_{field}_error">')[1:]]
        assert reason in beside
        summary = text.partition('id="refused"')[2].partition("</div>")[0]
        assert f'href="#id_{field}"' in summary
        assert reason in summary
        # What was typed is kept.
        assert "sleep 9" in text or field == "args"
        assert not ManagedProcess.objects.exists()
        # What the form itself refuses was no declaration yet.
        assert Event.objects.filter(kind="service.rejected").exists() == ("-" in reason)

    @pytest.mark.parametrize(
        ("changed", "place", "reason"),
        [
            ({"check_type": "tcp", "port": "x"}, "port", "healthcheck-port-invalid"),
            ({"check_type": "command"}, "check_cmd", "healthcheck-cmd-missing"),
            (
                {"check_type": "command", "check_cmd": "git x", "expect_regex": "("},
                "expect_regex",
                "expect-regex-invalid",
            ),
            (
                {"check_type": "command", "check_cmd": "git a; b", "expect_regex": "x"},
                "check_cmd",
                "healthcheck-shell-not-allowed",
            ),
        ],
    )
    def test_so_are_those_of_other_checks(self, sign_in, changed, place, reason):
        text = text_of(sign_in().post(self.PATH, self.typed(**changed)))
        assert reason in text.partition(f'id="id_{place}_error"')[2].partition("</ul>")[0]

    def test_checking_changes_nothing_and_hides_values(self, sign_in):
        before = Event.objects.count()
        answer = sign_in().post(self.PATH, self.typed(act="check"))
        text = text_of(answer)
        assert (answer.status_code, "This would be accepted in demo" in text) == (200, True)
        kept = text.partition('id="checked"')[2].partition("</div>")[0]
        assert "SITE" in kept
        assert "top-value" not in kept
        assert answer["Cache-Control"] == "no-store"
        assert (ManagedProcess.objects.count(), Event.objects.count()) == (0, before)

    def test_a_spec_file_is_pasted(self, sign_in, demo):
        spec = {"name": "a", "cmd": "bash", "healthcheck": {"type": "tcp", "port": 3000, "timeout_s": 3}}
        document = {"specs": [spec, {**spec, "name": "b"}], "written_by": "t_1-1", "wi_id": "t_1", "extra": 1}
        data = {"source": "file", "project": "demo", "text": json.dumps(document, indent=1), "act": "declare"}
        answer = sign_in().post(self.PATH, data, follow=True)
        assert answer.redirect_chain == [("/services/?project=demo", 302)]
        assert "a, b are declared." in text_of(answer)
        assert "unknown key &quot;extra&quot;" in text_of(answer)
        rows = ManagedProcess.objects.order_by("position").values_list("name", "owner_agent", "owner_wi")
        assert list(rows) == [("a", "t_1-1", "t_1"), ("b", "t_1-1", "t_1")]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{", "json-parse:"),
            ('{"specs": []}', "specs-empty"),
            ('{"specs": [{"name": "a", "cmd": "vim"}]}', "spec[0]: cmd-not-on-allowlist (vim)"),
            ('{"specs": [NaN]}', "json-parse: NaN"),
            ("[" * 100_000, "larger than 65536 bytes"),
            ("[" * 9_000, "json-parse: nested too deep"),
        ],
    )
    def test_its_reason_stands_below_the_box(self, sign_in, text, reason):
        data = {"source": "file", "project": "demo", "text": text, "act": "check"}
        shown = text_of(sign_in().post(self.PATH, data))
        assert reason in shown.partition('id="id_file_text_error"')[2].partition("</ul>")[0]
        assert 'href="#id_file_text"' in shown

    def test_an_owner_longer_than_its_column_is_refused(self, sign_in):
        spec = {"name": "a", "cmd": "bash", "healthcheck": {"type": "tcp", "port": 3000, "timeout_s": 3}}
        data = {"source": "file", "project": "demo", "act": "declare"}
        data["text"] = json.dumps({"specs": [spec], "written_by": "x" * 129})
        assert "written_by-too-long (&gt;128)" in text_of(sign_in().post(self.PATH, data))
        assert not ManagedProcess.objects.exists()

    def test_what_the_verbs_refuse_stands_beside_the_field_too(self, sign_in, demo):
        healthy(demo, "web", ports=[3000])
        client = sign_in()
        answer = client.post(self.PATH, self.typed())
        text = text_of(answer)
        assert answer.status_code == 409
        assert "name-already-active (web)" in text.partition('id="id_name_error"')[2].partition("</ul>")[0]
        text = text_of(client.post(self.PATH, self.typed(name="other")))
        assert "port-conflict (3000: demo/web)" in text.partition('id="id_ports_error"')[2].partition("</ul>")[0]
        reasons = [event.payload["reason"] for event in Event.objects.filter(kind="service.rejected")]
        assert sorted(reasons) == ["name-already-active (web)", "port-conflict (3000: demo/web)"]

    def test_without_a_worker_nothing_is_changed(self, sign_in):
        WorkerHost.objects.all().delete()
        answer = sign_in().post(self.PATH, self.typed())
        assert answer.status_code == 503
        assert "No worker ticks" in text_of(answer)
        assert "top-value" in text_of(answer)
        assert not ManagedProcess.objects.exists()

    def test_values_stand_on_no_page_afterwards(self, sign_in):
        client = sign_in("admin")
        client.post(self.PATH, self.typed())
        row = ManagedProcess.objects.get()
        admin = f"/admin/services/managedprocess/{row.pk}/change/"
        for path in (
            row.get_absolute_url(),
            "/services/",
            "/",
            "/events/",
            "/projects/demo/",
            admin,
            "/admin/services/managedprocess/",
        ):
            answer = client.get(path)
            assert answer.status_code == 200
            assert "top-value" not in text_of(answer), path

    @pytest.mark.parametrize("method", ["get", "post"])
    def test_is_an_operators(self, sign_in, method):
        assert getattr(sign_in("viewer"), method)(self.PATH, self.typed()).status_code == 403
        assert not ManagedProcess.objects.exists()

    def test_takes_the_project_from_the_address_and_says_what_the_allowlist_is(self, sign_in, imported):
        imported("zoo")
        text = text_of(sign_in().get(self.PATH + "?project=zoo"))
        assert '<option value="zoo" selected>' in text
        assert "policy, not a sandbox" in text

    def test_no_two_fields_share_an_id(self, sign_in):
        ids = re.findall(r' id="([^"]+)"', text_of(sign_in().get(self.PATH)))
        assert len(ids) == len(set(ids))

    def test_without_a_project_it_says_so(self, sign_in):
        Project.objects.all().delete()
        text = text_of(sign_in().get(self.PATH))
        assert "No project yet" in text
        assert "<textarea" not in text
