"""The repair bench: for admins only, through verbs, without a query a row."""

import pytest
from django.contrib import admin
from django.utils import timezone

from projects import importer
from projects.models import ApiToken, Event, Project

pytestmark = pytest.mark.django_db


def test_every_model_is_there():
    from django.apps import apps

    for label in ("projects", "services"):
        for model in apps.get_app_config(label).get_models():
            assert model in admin.site._registry, model


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_others_are_refused(sign_in, role):
    client = sign_in(role)
    for path in ("/admin/", "/admin/projects/event/", "/admin/login/", "/admin/auth/user/add/"):
        assert client.get(path).status_code == 403


def test_lists_cost_the_same_however_long(sign_in, imported, make_token, django_assert_max_num_queries):
    for number in range(30):
        imported(f"p{number}", states=("passed", "pending"))
        make_token()
    client = sign_in("admin")
    for model in admin.site._registry:
        path = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        with django_assert_max_num_queries(14):
            assert client.get(path).status_code == 200, path


def test_rows_that_verbs_own_cannot_be_edited_or_deleted(sign_in, imported):
    project = imported("demo")
    client = sign_in("admin")
    path = f"/admin/projects/project/{project.pk}/"
    assert client.get(path + "change/").status_code == 200
    assert client.post(path + "change/", {"slug": "owned"}).status_code == 403
    assert client.post(path + "delete/", {"post": "yes"}).status_code == 403
    assert client.get("/admin/projects/event/add/").status_code == 403
    assert Project.objects.get().slug == "demo"


def test_tokens_are_revoked_by_the_verb(sign_in, make_token):
    make_token()
    token = ApiToken.objects.get()
    data = {"action": "revoke", "_selected_action": [token.pk]}
    sign_in("admin").post("/admin/projects/apitoken/", data)
    token.refresh_from_db()
    assert token.revoked_at is not None
    event = Event.objects.get(kind="token.revoked")
    assert event.payload["via"] == "admin"


def test_reading_again_forgets_what_was_read(sign_in, imported):
    project = imported("demo")
    data = {"action": "read_again", "_selected_action": [project.pk]}
    sign_in("admin").post("/admin/projects/project/", data)
    project.refresh_from_db()
    assert project.fingerprints == {}
    importer.rescan(now=timezone.now())
    project.refresh_from_db()
    assert project.fingerprints["prd"]["sha256"]


def test_an_admin_makes_people_and_links(sign_in, django_user_model):
    client = sign_in("admin")
    data = {"username": "new", "usable_password": "false", "password1": "", "password2": ""}
    assert client.post("/admin/auth/user/add/", data).status_code == 302
    user = django_user_model.objects.get(username="new")
    answer = client.post("/admin/auth/user/", {"action": "invite", "_selected_action": [user.pk]}, follow=True)
    assert "/login/link/" in answer.content.decode()
    assert Event.objects.filter(kind="user.invited", subject="user:new").exists()


def test_pages_lead_to_their_rows_and_rows_to_their_pages(sign_in, imported):
    project = imported("demo")
    client = sign_in("admin")
    story = project.stories.first()
    event = Event.objects.filter(kind="project.found").get()
    for page, row in (
        (project.get_absolute_url(), f"/admin/projects/project/{project.pk}/change/"),
        (story.get_absolute_url(), f"/admin/projects/story/{story.pk}/change/"),
        (event.get_absolute_url(), f"/admin/projects/event/{event.pk}/change/"),
    ):
        assert f'href="{row}"' in client.get(page).content.decode()
        assert row not in sign_in("operator").get(page).content.decode()
        listing = client.get(row.rsplit("/", 3)[0] + "/").content.decode()
        assert 'href="/projects/demo/' in listing


def test_changes_to_accounts_are_told_with_who_made_them(sign_in, make_user):
    user = make_user("bo", "viewer")
    client = sign_in("admin")
    path = f"/admin/auth/user/{user.pk}"
    from django.contrib.auth.models import Group

    data = {"username": "bo", "is_active": "on", "groups": [Group.objects.get_or_create(name="operator")[0].pk]}
    data |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    assert client.post(f"{path}/change/", data).status_code == 302
    secret = {"usable_password": "true", "password1": "garden-gate-41", "password2": "garden-gate-41"}
    assert client.post(f"{path}/password/", secret).status_code == 302
    assert client.post(f"{path}/delete/", {"post": "yes"}).status_code == 302
    told = Event.objects.filter(subject="user:bo").order_by("id")
    assert [event.kind for event in told] == ["user.changed", "user.password_set", "user.deleted"]
    assert told[0].payload["role"] == "operator"
    assert all(event.actor.startswith("user:admin") and event.payload["via"] == "admin" for event in told)


def test_a_host_that_is_gone_is_forgotten_with_its_projects_one_that_ticks_is_not(sign_in, imported):
    from projects.events import SWEEP
    from services import lifecycle
    from services.models import WorkerHost
    from services.processes import Identity

    imported("demo")
    host = lifecycle.enlist(Identity("test-node", "b", 4242, 1), host_name="", version="", by=SWEEP, now=timezone.now())
    client = sign_in("admin")
    data = {"action": "forget", "_selected_action": [host.pk]}
    client.post("/admin/services/workerhost/", data)
    assert Project.objects.count() == WorkerHost.objects.count() == 1
    lifecycle.leave(host, by=SWEEP, now=timezone.now())
    client.post("/admin/services/workerhost/", data)
    assert Project.objects.count() == WorkerHost.objects.count() == 0
    assert Event.objects.get(kind="worker.forgotten").payload["projects"] == 1


def test_states_look_as_on_pages_and_each_row_leads_to_its_page(sign_in, imported):
    imported("demo", states=("passed", "blocked"))
    client = sign_in("admin")
    stories = client.get("/admin/projects/story/").content.decode()
    assert 'class="status" data-status="passed"' in stories
    assert 'href="/projects/demo/stories/US-001/"' in stories
    assert 'data-status="blocked"' in client.get("/admin/projects/project/").content.decode()
    home = client.get("/admin/").content.decode()
    for url in ("/", "/projects/", "/services/", "/events/", "/system/"):
        assert f'href="{url}"' in home


def test_actions_stand_in_groups_and_none_is_left_out(sign_in):
    for model, bench in admin.site._registry.items():
        grouped = [name for names in getattr(bench, "action_groups", {}).values() for name in names]
        assert len(grouped) == len(set(grouped)), model
        assert set(grouped) <= {str(action) for action in bench.actions}, model
    text = sign_in("admin").get("/admin/services/managedprocess/").content.decode()
    if "optgroup" in text:
        assert text.index('label="Run"') < text.index('label="End"') < text.index('label="Last resort"')


def test_whatever_is_listed_can_be_searched(sign_in):
    without = {"EventFloor", "SignInLink", "Preference"}
    ours = [model for model in admin.site._registry if model._meta.app_label in {"projects", "services"}]
    missing = {model.__name__ for model in ours if not admin.site._registry[model].search_fields}
    assert missing <= without
    client = sign_in("admin")
    for model in ours:
        path = f"/admin/{model._meta.app_label}/{model._meta.model_name}/?q=demo"
        assert client.get(path, follow=True).status_code == 200, path


def test_the_event_log_is_only_read(sign_in, imported):
    imported("demo")
    event = Event.objects.order_by("id")[0]
    client = sign_in("admin")
    path = f"/admin/projects/event/{event.pk}/"
    assert f'href="{event.url or event.get_absolute_url()}"' in client.get("/admin/projects/event/").content.decode()
    assert client.get(path + "change/").status_code == 200
    for address, data in ((path + "change/", {"kind": "x.y"}), (path + "delete/", {"post": "yes"})):
        assert client.post(address, data).status_code == 403
    client.post("/admin/projects/event/", {"action": "delete_selected", "_selected_action": [event.pk]})
    assert Event.objects.get(pk=event.pk).kind == event.kind
