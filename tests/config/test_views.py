"""The pages over all apps: what they say, who may, and how many queries they cost."""

from datetime import timedelta

import pytest
from django.utils import timezone

from kanban.models import Task
from projects import importer
from projects.events import SWEEP, record, writing
from projects.models import ApiToken, Event, Preference
from services import lifecycle
from services.processes import Identity
from tests.kanban import rows
from tests.projects.files import write_log

pytestmark = pytest.mark.django_db
FRAME = 6  # session, user, groups, preference, log head, hosts


@pytest.fixture
def board(imported, workspace):
    """Three projects: one fine, one broken, one blocked, and a worker that ticks."""
    imported("fine", states=("passed", "pending"))
    imported("stuck", states=("passed", "blocked", "pending"))
    imported("lost", states=("failed", "passed"))
    (workspace / "fine/scripts/ralph/prd.json").write_text('{"userStories": [oops')
    importer.rescan(now=timezone.now())
    return lifecycle.enlist(
        Identity("test-node", "b", 4242, 1), host_name="box", version="1", by=SWEEP, now=timezone.now()
    )


class TestHome:
    def test_says_what_needs_somebody_the_most_urgent_first(self, sign_in, board):
        text = sign_in().get("/").content.decode()
        places = [text.index(part) for part in ("US-002 waits for a person", "lost has failed", "fine cannot be read")]
        assert places[0] < min(places[1:])
        assert "reason 2" in text
        assert "line 1" in text

    def test_says_that_nothing_needs_you_and_shows_first_steps(self, sign_in, workspace):
        text = sign_in("admin").get("/").content.decode()
        assert "Nothing needs you" in text
        assert str(workspace) in text
        assert "A token for scripts" in text
        assert "A token for scripts" not in sign_in("viewer").get("/").content.decode()

    def test_a_silent_worker_needs_somebody(self, sign_in, board):
        type(board).objects.update(tick_at=timezone.now() - timedelta(seconds=60))
        assert "worker of test-node is silent" in sign_in().get("/").content.decode()

    def test_costs_a_bounded_number_of_queries(self, sign_in, board, imported, django_assert_max_num_queries):
        for number in range(15):
            imported(f"more-{number}", states=("blocked", "pending"))
        client = sign_in("admin")
        with django_assert_max_num_queries(FRAME + 6):
            client.get("/")

    @pytest.mark.parametrize("name", ["needs", "running", "recent", "totals", "checklist"])
    def test_gives_each_fragment_alone_with_an_etag(self, sign_in, board, name):
        client = sign_in()
        headers = {"HX-Request": "true", "HX-Target": name}
        answer = client.get("/", headers=headers)
        text = answer.content.decode()
        assert "<html" not in text
        if text.strip():
            assert f'id="{name}"' in text
        assert {"HX-Request", "HX-Target"} <= {part.strip() for part in answer.headers["Vary"].split(",")}
        again = client.get("/", headers={**headers, "If-None-Match": answer.headers["ETag"]})
        assert again.status_code == 304


class TestEvents:
    def test_newest_first_with_filters_in_the_address(self, sign_in, board):
        client = sign_in()
        text = client.get("/events/").content.decode()
        assert text.index("project.error") < text.index("project.found")
        only = client.get("/events/?project=stuck").content.decode()
        assert "project:lost" not in only
        family = client.get("/events/?kind=worker.").content.decode()
        assert "worker.started" in family
        assert "project.found" not in family

    def test_small_changes_are_left_out_until_they_are_asked_for(self, sign_in, db):
        with writing():
            record("project.changed", "project:a", by=SWEEP, now=timezone.now(), project="a")
            record("task.heartbeat", "task:t_1", by=SWEEP, now=timezone.now(), note="Halfway")
        client = sign_in()
        text = client.get("/events/").content.decode()
        assert "Small changes are shown when they are asked for" in text
        assert "project.changed" not in text
        assert "Halfway" not in text
        for query in ("small=1", "kind=task.heartbeat", "subject=task:t_1"):
            text = client.get(f"/events/?{query}").content.decode()
            assert "Halfway" in text, query
            assert ('name="small" value="1" checked' in text) == (query == "small=1")

    def test_a_task_goes_by_its_title_while_it_is_there(self, sign_in, django_assert_max_num_queries):
        task = rows.task('Paint <b>100 %</b> of "it"')
        client = sign_in()
        pages = ("/", "/events/", f"/events/{Event.objects.get(kind='task.created').pk}/", f"/search/?q={task.subject}")
        for path in pages:
            with django_assert_max_num_queries(12):
                text = client.get(path).content.decode()
            assert "“Paint &lt;b&gt;100 %&lt;/b&gt; of &quot;it&quot;” made" in text, path
        Task.objects.update(title="evil \u202egnp.exe \u200bx")
        for path in pages:
            text = client.get(path).content.decode()
            assert "gnp.exe" in text, path
            assert not {"\u202e", "\u200b"} & set(text), path
        Task.objects.all().delete()
        assert f"{task.pk} made" in client.get("/events/").content.decode()

    def test_pages_by_cursor_and_never_counts(self, sign_in, django_assert_max_num_queries):
        with writing():
            for number in range(250):
                record("bench.x", f"bench:{number}", by=SWEEP, now=timezone.now())
        client = sign_in()
        with django_assert_max_num_queries(FRAME + 1):
            first = client.get("/events/").content.decode()
        assert first.count("bench.x") >= 100
        last = Event.objects.order_by("-id")[99].id
        assert f"before={last}" in first
        assert "bench:149" in client.get(f"/events/?before={last}").content.decode()

    @pytest.mark.parametrize("query", ["before=x", "before=-1", "before=99999999999999999999", "kind=" + "x" * 999])
    def test_nonsense_in_the_address_is_no_error(self, sign_in, query):
        assert sign_in().get(f"/events/?{query}").status_code == 200

    def test_one_event_has_a_page_and_what_agents_wrote_is_escaped(self, sign_in):
        with writing():
            record("story.failed", "story:a/b", by=SWEEP, now=timezone.now(), reason="<img src=x onerror=alert(1)>")
        event = Event.objects.get()
        text = sign_in().get(event.get_absolute_url()).content.decode()
        assert "&lt;img src=x" in text
        assert "<img src=x" not in text
        assert sign_in().get("/events/999999/").status_code == 404


class TestSystem:
    def test_shows_workers_and_facts(self, sign_in, board):
        text = sign_in().get("/system/").content.decode()
        for part in ("test-node", "box", "Ticking", "Engine", "Free"):
            assert part in text

    def test_what_is_dear_to_tell_is_kept_for_a_minute(self, sign_in, board, monkeypatch):
        from projects import sizes

        monkeypatch.setattr(sizes, "_kept", {})
        client = sign_in()
        headers = {"HX-Request": "true", "HX-Target": "facts"}
        first = client.get("/system/", headers=headers).content.decode()
        assert f"<dd>{Event.objects.count()}</dd>" in first
        monkeypatch.setattr(sizes, "of_tree", lambda folder: 1 / 0)
        monkeypatch.setattr(Event.objects, "count", lambda: 1 / 0)
        assert client.get("/system/", headers=headers).status_code == 200

    def test_the_header_turns_red_though_nobody_has_told_of_the_silence(self, sign_in, board):
        type(board).objects.update(tick_at=timezone.now() - timedelta(seconds=16))
        headers = {"HX-Request": "true", "HX-Target": "worker-tick"}
        text = sign_in().get("/system/", headers=headers).content.decode()
        assert "silent" in text.lower()
        assert not Event.objects.filter(kind="worker.silent").exists()

    def test_the_header_turns_red_after_15_seconds(self, sign_in, board):
        client = sign_in()
        headers = {"HX-Request": "true", "HX-Target": "worker-tick"}
        assert "ticking" in client.get("/system/", headers=headers).content.decode().lower()
        lifecycle.silence(board, by=SWEEP, now=timezone.now() + timedelta(seconds=16))
        assert "silent" in client.get("/system/", headers=headers).content.decode().lower()


class TestSettings:
    def test_preferences_are_kept_and_the_theme_in_a_cookie(self, sign_in):
        client = sign_in("viewer")
        data = {"theme": "dark", "density": "compact", "zone": "Europe/Berlin"}
        assert client.post("/settings/", data).status_code == 302
        assert client.cookies["andon_theme"].value == "dark"
        text = client.get("/").content.decode()
        assert 'data-theme="dark"' in text
        assert 'data-density="compact"' in text
        assert 'data-shortcuts="off"' in text
        assert Preference.objects.get().zone == "Europe/Berlin"
        client.post("/logout/")
        assert 'data-theme="dark"' in client.get("/login/").content.decode()

    @pytest.mark.parametrize("change", [{"theme": "pink"}, {"zone": "Mars/Base"}, {"density": ""}])
    def test_nonsense_is_told_beside_the_field(self, sign_in, change):
        data = {"theme": "dark", "density": "compact", "zone": "UTC", **change}
        answer = sign_in().post("/settings/", data)
        assert answer.status_code == 400
        assert not Preference.objects.exists()

    def test_a_zone_that_this_machine_does_not_know_locks_nobody_out(self, sign_in):
        client = sign_in("admin")
        client.post("/settings/", {"theme": "dark", "density": "compact", "zone": "UTC"})
        Preference.objects.update(zone="Mars/Base")
        assert client.get("/settings/").status_code == 200
        row = f"/admin/projects/preference/{Preference.objects.get().pk}/change/"
        data = {"user": Preference.objects.get().user_id, "theme": "dark", "density": "compact", "zone": "Berlin"}
        assert "is not a time zone" in client.post(row, data).content.decode()

    def test_a_token_is_shown_once(self, sign_in, client_of):
        admin = sign_in("admin")
        answer = admin.post("/settings/tokens/", {"name": "ci", "role": "operator", "days": "30"})
        raw = answer.context["new_token"]["text"]
        assert raw in answer.content.decode()
        assert answer.headers["Cache-Control"] == "no-store"
        assert raw not in admin.get("/settings/").content.decode()
        token = ApiToken.objects.get()
        assert timedelta(days=29) < token.expires_at - timezone.now() <= timedelta(days=30)
        again = admin.post("/settings/tokens/", {"name": "ci", "role": "operator"})
        assert (again.status_code, "already called ci" in again.content.decode()) == (409, True)
        assert admin.post("/settings/tokens/", {"name": "x", "role": "god"}).status_code == 400

    def test_revoking_asks_first(self, sign_in, make_token):
        make_token()
        token = ApiToken.objects.get()
        admin = sign_in("admin")
        path = f"/settings/tokens/{token.pk}/revoke/"
        assert "cannot be undone" in admin.get(path).content.decode()
        assert ApiToken.objects.get().revoked_at is None
        assert admin.post(path).headers["Location"] == "/settings/"
        assert ApiToken.objects.get().revoked_at is not None
        assert admin.post(path).status_code == 409
        assert admin.get("/settings/tokens/999/revoke/").status_code == 404

    @pytest.mark.parametrize("role", ["viewer", "operator"])
    def test_only_admins_see_and_make_tokens(self, sign_in, make_token, role):
        make_token()
        client = sign_in(role)
        assert ApiToken.objects.get().name not in client.get("/settings/").content.decode()
        assert client.post("/settings/tokens/", {"name": "x", "role": "admin"}).status_code == 403
        assert client.post(f"/settings/tokens/{ApiToken.objects.get().pk}/revoke/").status_code == 403
        assert ApiToken.objects.count() == 1


class TestMachines:
    def test_health_is_open_and_says_nothing_else(self, client):
        assert client.get("/healthz").content == b"ok\n"
        answer = client.get("/readyz")
        assert (answer.status_code, answer.content) == (503, b"not ready\n")

    def test_ready_needs_a_ticking_worker_of_this_node_unless_web_only(self, client, settings):
        now = timezone.now()
        host = lifecycle.enlist(Identity("elsewhere", "b", 1, 1), host_name="", version="", by=SWEEP, now=now)
        assert client.get("/readyz").status_code == 503
        type(host).objects.update(node="test-node")
        assert client.get("/readyz").status_code == 200
        type(host).objects.update(tick_at=now - timedelta(seconds=16))
        assert client.get("/readyz").status_code == 503
        settings.ANDON_WEB_ONLY = True
        assert client.get("/readyz").status_code == 200

    def test_metrics_need_a_token_and_count(self, client, client_of, board):
        assert client.get("/metrics").status_code == 401
        text = client_of().get("/metrics").content.decode()
        assert "andon_projects 3.0" in text
        assert 'andon_stories{state="blocked"} 1.0' in text
        assert 'andon_worker_tick_age_seconds{node="test-node"}' in text
        assert 'andon_services{status="crash_loop"} 0.0' in text

    def test_metrics_are_not_for_a_token_of_one_project(self, client_of):
        answer = client_of(project="demo").get("/metrics")
        assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")

    def test_the_api_pages_are_ours_and_behind_the_door(self, client, sign_in):
        assert client.get("/api/docs").status_code == 401
        text = sign_in("viewer").get("/api/docs").content.decode()
        assert "https://" not in text
        assert "<script>" not in text


class TestErrors:
    def test_each_has_a_page_with_a_next_step(self, sign_in, client_of):
        client = sign_in("viewer")
        page = client.get("/nowhere/")
        assert (page.status_code, 'href="/' in page.content.decode()) == (404, True)
        assert client.get("/admin/").status_code == 403
        assert client_of().get("/api/nowhere").json()["error"] == "not-found"

    def test_an_internal_one_tells_nothing_of_its_cause(self, sign_in, monkeypatch):
        from config import queries

        monkeypatch.setattr(queries, "facts", lambda: 1 / 0)
        client = sign_in()
        client.raise_request_exception = False
        answer = client.get("/system/")
        assert answer.status_code == 500
        assert "ZeroDivision" not in answer.content.decode()

    def test_headers_are_strict_everywhere(self, sign_in, client):
        for answer in (client.get("/login/"), client.get("/api/me"), sign_in().get("/"), client.get("/healthz")):
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'self'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"

    def test_every_visible_log_is_compressed_but_no_stream(self, sign_in, imported, workspace):
        imported("demo")
        write_log(workspace / "demo", 1, "word " * 500)
        importer.rescan(now=timezone.now())
        answer = sign_in().get("/projects/demo/", headers={"Accept-Encoding": "gzip"})
        assert answer.headers["Content-Encoding"] == "gzip"
