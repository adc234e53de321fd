"""Notices over REST and on /settings/notices/: who may, what is shown, and never a secret."""

from datetime import timedelta

import pytest
from django.utils import timezone

from kanban import notices
from kanban.lifecycle import subscribing
from kanban.models import Delivery, Subscription
from projects.events import By, record, writing
from projects.models import Event
from tests.kanban.endpoint import answer, endpoint

pytestmark = pytest.mark.django_db
URL = "/api/kanban/subscriptions"
PAGE = "/settings/notices/"
HOOK = "https://hooks.example.org/T0/5ecret"
FRAME = 6  # session, user, groups, preference, log head, hosts


def make(client, **fields):
    return client.post(URL, {"address": HOOK, **fields}, content_type="application/json")


class TestRest:
    def test_makes_and_lists_and_deletes(self, client_of):
        client = client_of("operator")
        made = make(client, kind="task.", subject="task:t_1")
        assert made.status_code == 201
        body = made.json()
        assert body["secret"].startswith("whsec_")
        assert body["subscription"]["address"] == HOOK
        listed = client.get(URL)
        assert listed.json()["subscriptions"] == [body["subscription"]]
        assert body["secret"] not in listed.content.decode()
        number = body["subscription"]["id"]
        assert client.delete(f"{URL}/{number}").status_code == 204
        assert client.delete(f"{URL}/{number}").status_code == 404
        assert body["secret"] not in str(list(Event.objects.values()))

    def test_refuses_with_a_sentence(self, client_of):
        client = client_of("operator")
        assert make(client, address="http://10.0.0.1/").json()["error"] == "invalid-address"
        assert make(client, target="email", address="a@example.org").json()["error"] == "no-email"
        assert client.post(URL, {}, content_type="application/json").status_code == 422
        for name in ("project", "kind", "subject", "secret", "target"):
            assert make(client, **{name: "a\x00\ud800b"}).status_code in {400, 422}
        assert make(client).status_code == 201
        assert make(client).status_code == 409

    def test_viewers_and_strangers_see_hosts_only(self, client_of):
        make(client_of("operator"))
        for role in ("viewer", "operator"):
            [row] = client_of(role).get(URL).json()["subscriptions"]
            assert row["address"] == "https://hooks.example.org"
        [row] = client_of("admin").get(URL).json()["subscriptions"]
        assert row["address"] == HOOK
        assert make(client_of("viewer")).status_code == 403

    def test_only_its_maker_and_admins_change_it(self, client_of):
        mine, other, admin = client_of("operator"), client_of("operator"), client_of("admin")
        number = make(mine).json()["subscription"]["id"]
        for verb in ("pause", "resume", "test"):
            assert other.post(f"{URL}/{number}/{verb}").status_code == 403
        assert other.delete(f"{URL}/{number}").status_code == 403
        assert other.get(f"{URL}/{number}/deliveries").status_code == 403
        assert mine.post(f"{URL}/{number}/pause").json()["subscription"]["paused_at"]
        assert mine.post(f"{URL}/{number}/pause").status_code == 409
        assert admin.post(f"{URL}/{number}/resume").json()["subscription"]["paused_at"] is None

    def test_a_projects_token_stays_in_its_project(self, client_of, imported):
        imported("demo")
        imported("other")
        make(client_of("operator"))
        bound = client_of("operator", project="demo")
        assert bound.get(URL).json()["subscriptions"] == []
        assert make(bound, project="other").status_code == 403
        assert make(bound).json()["subscription"]["project"] == "demo"

    def test_shows_deliveries_and_sends_again(self, client_of, django_assert_max_num_queries):
        client = client_of("operator")
        number = make(client).json()["subscription"]["id"]
        tested = client.post(f"{URL}/{number}/test")
        assert tested.status_code == 202
        assert tested.json()["delivery"]["event_id"] is None
        at = timezone.now()
        row = Subscription.objects.get()
        dead = Delivery.objects.create(
            subscription=row, event_id=7, status="dead", created_at=at, next_try_at=at, document={"kind": "task.x"}
        )
        shown = client.get(f"{URL}/{number}/deliveries").json()["deliveries"]
        assert [one["status"] for one in shown] == ["dead", "pending"]
        assert client.get(f"{URL}/{number}/deliveries?status=dead&before={dead.pk}").json() == {"deliveries": []}
        again = client.post(f"{URL}/{number}/deliveries/{dead.pk}/send-again")
        assert again.json()["delivery"]["status"] == "pending"
        assert client.post(f"{URL}/{number}/deliveries/{dead.pk}/send-again").status_code == 409
        assert client.post(f"{URL}/{number}/deliveries/999/send-again").status_code == 404
        assert client.get(f"{URL}/{number}/deliveries?status=%00").status_code == 422
        assert client.get(f"{URL}/{10**30}/deliveries").status_code == 404
        with django_assert_max_num_queries(3):
            client.get(f"{URL}/{number}/deliveries")

    def test_the_list_costs_a_bounded_number_of_queries(self, client_of, django_assert_max_num_queries):
        client = client_of("operator")
        for number in range(6):
            make(client, kind=f"task.{number}")
        with django_assert_max_num_queries(2):
            client.get(URL)


class TestPages:
    def test_viewers_may_not(self, sign_in):
        client = sign_in("viewer")
        for path in (PAGE, f"{PAGE}1/", f"{PAGE}1/delete/"):
            assert client.get(path).status_code == 403
        assert client.post(PAGE, {"target": "webhook", "address": HOOK}).status_code == 403
        assert PAGE not in client.get("/settings/").content.decode()

    def test_a_notice_is_set_up_tested_paused_and_deleted(self, sign_in, settings):
        settings.ANDON_WEBHOOK_HOSTS = frozenset({"127.0.0.1"})
        client = sign_in("operator")
        assert "Nobody is told yet" in client.get(PAGE).content.decode()
        assert PAGE in client.get("/settings/").content.decode()
        with endpoint() as server:
            made = client.post(PAGE, {"target": "webhook", "address": server.url, "kind": "task."})
            row = Subscription.objects.get()
            assert made.status_code == 200
            assert row.secret in made.content.decode()
            assert made["Cache-Control"] == "no-store"
            assert row.secret not in client.get(PAGE).content.decode()
            at = f"{PAGE}{row.pk}/"
            server.script.append(answer(500))
            assert client.post(f"{at}test/").headers["Location"] == at
            notices.send_to(row.pk)
            text = client.get(at).content.decode()
            assert "answered 500" in text
            assert "5ecret" in text
            assert row.secret not in text
            assert "under way" not in client.post(f"{at}test/", follow=True).content.decode()
            assert "under way" in client.post(f"{at}test/", follow=True).content.decode()
        assert "Resume" in client.post(f"{at}pause/", follow=True).content.decode()
        assert "Paused" in client.get(PAGE).content.decode()
        assert "Pause" in client.post(f"{at}resume/", follow=True).content.decode()
        assert client.post(f"{at}dance/").status_code == 404
        assert "cannot be undone" not in client.get(f"{at}delete/").content.decode()
        assert Subscription.objects.exists()
        assert client.post(f"{at}delete/").headers["Location"] == PAGE
        assert not Subscription.objects.exists()
        assert client.get(at).status_code == 404

    def test_the_form_says_what_is_wrong(self, sign_in, settings):
        client = sign_in("operator")
        answered = client.post(PAGE, {"target": "webhook", "address": "http://169.254.169.254/"})
        assert answered.status_code == 400
        assert "may never be asked" in answered.content.decode()
        assert client.post(PAGE, {"target": "email", "address": "a@example.org"}).status_code == 400
        assert "EMAIL_URL" in client.get(PAGE).content.decode()
        settings.EMAIL_IS_SET_UP = True
        assert client.post(PAGE, {"target": "email", "address": "a@example.org"}).status_code == 200
        assert client.post(PAGE, {"target": "email", "address": "a@example.org"}).status_code == 409

    def test_somebody_elses_is_shown_by_its_host(self, sign_in):
        by, at = By("user:eve", "page"), timezone.now()
        row, _ = subscribing.subscribe("webhook", HOOK, by=by, now=at)
        client = sign_in("operator")
        text = client.get(PAGE).content.decode()
        assert "https://hooks.example.org" in text
        assert "5ecret" not in text
        assert client.get(f"{PAGE}{row.pk}/").status_code == 403
        assert sign_in("admin").get(f"{PAGE}{row.pk}/").status_code == 200

    def test_the_log_is_paged_filtered_and_sends_again(self, sign_in, django_assert_max_num_queries):
        at = timezone.now()
        row, _ = subscribing.subscribe("webhook", HOOK, kind="task.", by=By("user:eve", "page"), now=at)
        for number in range(60):
            with writing():
                record("task.blocked", f"task:<b>{number}</b>", by=By("user:eve", "page"), now=at)
        notices.feed(now=at)
        Delivery.objects.filter(pk=Delivery.objects.first().pk).update(status="dead", error="answered 404")
        Subscription.objects.update(failures=3, last_error="answered 404", retry_at=at + timedelta(minutes=1))
        client = sign_in("admin")
        with django_assert_max_num_queries(FRAME + 4):
            text = client.get(f"{PAGE}{row.pk}/").content.decode()
        assert "Page 1 of 2" in text
        assert "<b>" not in text
        dead = client.get(f"{PAGE}{row.pk}/?status=dead").content.decode()
        assert "answered 404" in dead
        one = Delivery.objects.get(status="dead")
        assert client.post(f"{PAGE}{row.pk}/again/{one.pk}/").status_code == 302
        one.refresh_from_db()
        assert one.status == "pending"
        with django_assert_max_num_queries(FRAME + 3):
            text = client.get(PAGE).content.decode()
        assert "Failing" in text
        told = Event.objects.get(kind="notice.sent_again")
        assert told.url == f"{PAGE}{row.pk}/"

    def test_fragments_stand_alone(self, sign_in):
        row, _ = subscribing.subscribe("webhook", HOOK, by=By("user:eve", "page"), now=timezone.now())
        client = sign_in("admin")
        for path, name in ((PAGE, "notices"), (f"{PAGE}{row.pk}/", "notice")):
            text = client.get(path, headers={"HX-Request": "true", "HX-Target": name}).content.decode()
            assert text.lstrip().startswith(f'<section id="{name}"')
