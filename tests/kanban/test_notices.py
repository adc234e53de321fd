"""Notices: fed once, sent at least once, backed off, paused and shown, never dropped silently."""

import hashlib
import hmac
import itertools
import threading
import time
import uuid
from datetime import timedelta

import pytest
from django.core import mail
from django.utils import timezone

from kanban import notices
from kanban.lifecycle import delivering, subscribing
from kanban.models import Delivery, Subscription
from kanban.states import DELIVERY_MOVES, NOTICE_FAILURES, NOTICE_LEASE, DeliveryStatus
from projects.errors import Conflict, Missing, Rejected
from projects.events import By, record, writing
from projects.models import Event, EventFloor
from tests.kanban import rows
from tests.kanban.endpoint import answer, endpoint

pytestmark = pytest.mark.django_db
ANNA = By("user:anna", "page", "127.0.0.1")
SECRET = "a secret of at least 16"


@pytest.fixture
def server(settings):
    settings.ANDON_WEBHOOK_HOSTS = frozenset({"127.0.0.1"})
    with endpoint() as found:
        yield found


@pytest.fixture
def subscribed(server, now):
    def make(**fields) -> Subscription:
        fields = {"secret": SECRET, "kind": "task.", **fields}
        return subscribing.subscribe("webhook", server.url, **fields, by=ANNA, now=now)[0]

    return make


def tell(kind: str = "task.blocked", subject: str = "task:t_1", *, now, project: str = "", **payload) -> int:
    with writing():
        record(kind, subject, by=ANNA, now=now, project=project, **payload)
    return Event.objects.order_by("-id").first().id


def send(row: Subscription, at) -> int:
    return notices.send_to(row.pk, clock=lambda: at)


def kinds() -> list[str]:
    return list(Event.objects.filter(kind__startswith="notice.").order_by("id").values_list("kind", flat=True))


class TestSubscribe:
    def test_starts_at_the_head_and_shows_its_secret_once(self, server, now):
        tell(now=now)
        row, secret = subscribing.subscribe("webhook", server.url, by=ANNA, now=now)
        assert secret.startswith("whsec_")
        assert row.secret == secret
        assert notices.feed(now=now) == 0
        told = Event.objects.get(kind="notice.subscribed")
        assert told.subject == row.subject
        assert "5ecret" not in str(told.payload)
        assert secret not in str(told.payload) + repr(row) + str(row)

    @pytest.mark.parametrize(
        ("target", "address", "fields", "code"),
        [
            ("pigeon", "https://example.org/", {}, "unknown-target"),
            ("webhook", "example.org", {}, "invalid-address"),
            ("webhook", "http://127.0.0.1/", {}, "invalid-address"),
            ("webhook", "http://169.254.169.254/", {}, "invalid-address"),
            ("webhook", "https://example.org/", {"secret": "short"}, "invalid-secret"),
            ("webhook", "https://example.org/", {"project": "nowhere"}, "unknown-project"),
            ("webhook", "https://example.org/", {"kind": "x" * 65}, "invalid-kind"),
            ("webhook", "https://example.org/", {"about": "a\nb"}, "invalid-subject"),
            ("email", "anna@example.org", {}, "no-email"),
        ],
    )
    def test_refuses_nonsense(self, now, target, address, fields, code):
        with pytest.raises(Rejected) as caught:
            subscribing.subscribe(target, address, **fields, by=ANNA, now=now)
        assert caught.value.code == code
        assert not Subscription.objects.exists()

    def test_refuses_the_same_twice_and_too_many(self, subscribed, now, monkeypatch):
        subscribed()
        with pytest.raises(Conflict, match="already-subscribed"):
            subscribed()
        monkeypatch.setattr(subscribing, "MOST_SUBSCRIPTIONS", 1)
        with pytest.raises(Conflict, match="too-many"):
            subscribed(kind="loop.")

    def test_ends_with_its_deliveries(self, subscribed, now):
        row = subscribed()
        tell(now=now)
        notices.feed(now=now)
        subscribing.unsubscribe(row, by=ANNA, now=now)
        assert not Delivery.objects.exists()
        assert Event.objects.get(kind="notice.unsubscribed").payload["pending"] == 1
        with pytest.raises(Missing):
            subscribing.unsubscribe(row, by=ANNA, now=now)


class TestFeed:
    def test_makes_one_delivery_of_each_event_that_is_wanted(self, subscribed, imported, now):
        imported("demo")
        row = subscribed(kind="task.b", about="task:t_1", project="demo")
        wanted = tell(project="demo", now=now)
        tell("task.created", project="demo", now=now)
        tell(subject="task:t_2", project="demo", now=now)
        tell(project="", now=now)
        assert notices.feed(now=now) == 1
        assert notices.feed(now=now) == 0
        made = Delivery.objects.get()
        assert (made.event_id, made.status, made.document["id"]) == (wanted, "pending", wanted)
        row.refresh_from_db()
        assert row.cursor == subscribing.newest_event()

    def test_never_tells_a_subscription_of_itself(self, subscribed, now):
        row = subscribed(kind="")
        subscribing.pause(row, by=ANNA, now=now)
        subscribing.resume(row, by=ANNA, now=now)
        assert notices.feed(now=now) == 0

    def test_goes_on_in_batches(self, subscribed, now, monkeypatch):
        subscribed()
        monkeypatch.setattr(notices, "BATCH", 2)
        for _ in range(5):
            tell(now=now)
        assert [notices.feed(now=now) for _ in range(4)] == [1, 2, 2, 0]

    def test_makes_no_more_than_may_wait(self, subscribed, now, monkeypatch):
        row = subscribed()
        monkeypatch.setattr(notices, "MOST_WAITING", 3)
        monkeypatch.setattr(notices, "BATCH", 2)
        for _ in range(8):
            tell(now=now)
        assert sum(notices.feed(now=now) for _ in range(6)) == 3
        assert send(row, now) == 3
        assert sum(notices.feed(now=now) for _ in range(6)) >= 3

    def test_of_two_feeders_one_wins(self, subscribed, now):
        row = subscribed()
        tell(now=now)
        rows = notices._events_after(row.cursor)
        assert [delivering.feed(row, rows, through=rows[-1]["id"], now=now) for _ in range(2)] == [1, 0]

    def test_a_paused_one_is_fed_when_it_is_resumed(self, subscribed, now):
        row = subscribed()
        subscribing.pause(row, by=ANNA, now=now)
        tell(now=now)
        assert notices.feed(now=now) == 0
        subscribing.resume(row, by=ANNA, now=now)
        assert notices.feed(now=now) == 1

    def test_says_what_retention_has_deleted_before(self, subscribed, now):
        row = subscribed()
        tell(now=now)
        last = tell(now=now)
        EventFloor.objects.update_or_create(id=1, defaults={"pruned_through": last})
        notices.feed(now=now)
        told = Event.objects.get(kind="notice.missed")
        assert told.payload["through"] == last
        row.refresh_from_db()
        assert row.cursor == last
        assert not delivering.note_missed(row, last, now=now)

    def test_one_poison_row_stops_nobody(self, subscribed, now, monkeypatch):
        first, second = subscribed(), subscribed(kind="task.b")
        tell(now=now)
        real = delivering.feed
        monkeypatch.setattr(
            delivering, "feed", lambda row, *a, **k: 1 / 0 if row.pk == first.pk else real(row, *a, **k)
        )
        assert notices.feed(now=now) == 1
        assert Delivery.objects.get().subscription_id == second.pk


class TestSend:
    def test_is_signed_and_says_it_all(self, subscribed, server, now):
        row = subscribed()
        event = tell(reason="ü", now=now)
        notices.feed(now=now)
        assert send(row, now) == 1
        [heard] = server.heard
        made = Delivery.objects.get()
        assert heard.json["delivery"] == str(made.delivery_id) == heard.headers["x-andon-delivery"]
        assert set(heard.json["event"]) == {"id", "at", "kind", "subject", "project", "actor", "run", "payload"}
        assert heard.json["event"]["id"] == event
        assert heard.json["event"]["at"] == "2026-11-20T12:00:00Z"
        assert heard.json["event"]["payload"]["reason"] == "ü"
        assert heard.headers["x-andon-event"] == "task.blocked"
        signed = heard.headers["x-andon-timestamp"].encode() + b"." + heard.body
        wanted = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert heard.headers["x-andon-signature"] == f"sha256={wanted}"
        assert (made.status, made.response_status, made.delivered_at) == ("delivered", 200, now)
        row.refresh_from_db()
        assert row.last_delivered_at == now
        assert send(row, now) == 0

    def test_arrives_in_order(self, subscribed, server, now):
        row = subscribed()
        ids = [tell(now=now) for _ in range(5)]
        notices.feed(now=now)
        assert send(row, now) == 5
        assert [heard.json["event"]["id"] for heard in server.heard] == ids

    def test_a_failure_holds_up_all_then_all_go_through(self, subscribed, server, now):
        row = subscribed()
        for _ in range(3):
            tell(now=now)
        notices.feed(now=now)
        server.script.append(answer(503))
        assert send(row, now) == 1
        row.refresh_from_db()
        assert (row.failures, row.last_error) == (1, "answered 503")
        assert timedelta(seconds=9) <= row.retry_at - now <= timedelta(seconds=10)
        assert send(row, now + timedelta(seconds=5)) == 0
        assert send(row, now + timedelta(seconds=11)) == 3
        row.refresh_from_db()
        assert (row.failures, row.retry_at, row.last_error) == (0, None, "")
        first = Delivery.objects.order_by("event_id").first()
        assert (first.attempts, first.status) == (2, "delivered")
        assert len({heard.headers["x-andon-delivery"] for heard in server.heard}) == 3

    def test_a_redirect_is_a_failure(self, subscribed, server, now):
        row = subscribed()
        tell(now=now)
        notices.feed(now=now)
        server.script.append(answer(307, f"Location: {server.url}"))
        send(row, now)
        assert "not followed" in Delivery.objects.get().error
        assert len(server.heard) == 1

    def test_the_twelfth_failure_pauses_and_shows_and_resuming_tries_again(self, subscribed, server, now):
        row = subscribed()
        tell(now=now)
        notices.feed(now=now)
        server.script += [answer(500)] * NOTICE_FAILURES
        waits, at = [], now
        for _ in range(NOTICE_FAILURES):
            assert send(row, at) == 1
            row.refresh_from_db()
            waits.append(row.retry_at - at)
            at = max(row.retry_at, Delivery.objects.get().next_try_at)
        assert all(first < then for first, then in itertools.pairwise(waits[:8]))
        assert max(waits) <= timedelta(hours=1)
        assert row.paused_at is not None
        assert "12 failures in a row: answered 500" in row.paused_reason
        assert kinds() == ["notice.subscribed", "notice.paused"]
        assert send(row, at + timedelta(days=1)) == 0
        assert Delivery.objects.get().status == "pending"
        subscribing.resume(row, by=ANNA, now=at)
        assert send(row, at) == 1
        assert Delivery.objects.get().status == "delivered"

    def test_one_poison_event_is_given_up_and_told_while_others_arrive(self, subscribed, server, now):
        row = subscribed()
        poison = tell(now=now)
        notices.feed(now=now)
        at = now
        for _ in range(NOTICE_FAILURES):
            tell(now=at)
            server.script.append(answer(400))
            assert send(row, at) == 1
            notices.feed(now=at)
            row.refresh_from_db()
            delivery = Delivery.objects.get(event_id=poison)
            Subscription.objects.update(retry_at=None, failures=0)  # others went through
            Delivery.objects.exclude(pk=delivery.pk).delete()
            at = delivery.next_try_at
        assert delivery.status == "dead"
        told = Event.objects.get(kind="notice.undeliverable")
        assert told.payload["event"] == poison
        row.refresh_from_db()
        assert row.paused_at is None
        delivering.send_again(delivery, by=ANNA, now=at)
        assert send(row, at) == 1
        delivery.refresh_from_db()
        assert delivery.status == "delivered"
        assert "notice.sent_again" in kinds()

    def test_what_was_tried_least_comes_first(self, subscribed, server, now):
        row = subscribed()
        first, second = tell(now=now), tell(now=now)
        notices.feed(now=now)
        server.script += [answer(500), answer(500)]
        send(row, now)
        send(row, now + timedelta(seconds=11))
        assert [heard.json["event"]["id"] for heard in server.heard] == [first, second]

    def test_what_a_crash_leaves_is_sent_again_under_its_id(self, subscribed, server, now, monkeypatch):
        row = subscribed()
        tell(now=now)
        notices.feed(now=now)
        with monkeypatch.context() as patch:
            patch.setattr(delivering, "delivered", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                send(row, now)
        assert send(row, now + timedelta(seconds=30)) == 0
        assert send(row, now + NOTICE_LEASE + timedelta(seconds=1)) == 1
        assert len(server.heard) == 2
        assert len({heard.json["delivery"] for heard in server.heard}) == 1
        assert Delivery.objects.get().status == "delivered"

    def test_a_late_failure_of_a_sender_that_lost_its_lease_counts_for_nothing(self, subscribed, now):
        row = subscribed()
        tell(now=now)
        notices.feed(now=now)
        lost = delivering.lease(row.pk, now=now)
        later = now + NOTICE_LEASE + timedelta(seconds=1)
        mine = delivering.lease(row.pk, now=later)
        delivering.failed(lost, "too late", status=None, now=later)
        mine.refresh_from_db()
        assert (mine.error, mine.leased_until) == ("", later + NOTICE_LEASE)
        delivering.delivered(lost, status=200, now=later)
        with pytest.raises(Conflict):
            delivering.delivered(mine, status=200, now=later)

    def test_an_error_of_ours_is_a_failure_too(self, subscribed, now, monkeypatch):
        row = subscribed()
        tell(now=now)
        notices.feed(now=now)
        monkeypatch.setattr(notices, "_post", lambda _: 1 / 0)
        assert send(row, now) == 1
        assert Delivery.objects.get().error == "it cannot be sent: ZeroDivisionError"

    def test_one_deleted_meanwhile_is_left(self, subscribed, now):
        row = subscribed()
        tell(now=now)
        notices.feed(now=now)
        taken = delivering.lease(row.pk, now=now)
        subscribing.unsubscribe(row, by=ANNA, now=now)
        delivering.failed(taken, "x", status=None, now=now)
        delivering.delivered(taken, status=200, now=now)
        assert delivering.lease(row.pk, now=now) is None
        with pytest.raises(Missing):
            delivering.send_again(taken, by=ANNA, now=now)

    def test_an_address_that_became_unusable_fails(self, subscribed, now, settings):
        row = subscribed()
        tell(now=now)
        notices.feed(now=now)
        settings.ANDON_WEBHOOK_HOSTS = frozenset()
        send(row, now)
        assert "ANDON_WEBHOOK_HOSTS" in Delivery.objects.get().error
        Subscription.objects.update(address="nothing", retry_at=None)
        Delivery.objects.update(next_try_at=now)
        assert send(row, now) == 1


class TestTest:
    def test_is_sent_once_also_while_paused(self, subscribed, server, now):
        row = subscribed()
        subscribing.pause(row, by=ANNA, now=now)
        subscribing.test(row, by=ANNA, now=now)
        with pytest.raises(Conflict, match="test-under-way"):
            subscribing.test(row, by=ANNA, now=now)
        assert send(row, now) == 1
        [heard] = server.heard
        assert (heard.json["event"]["kind"], heard.json["event"]["id"]) == ("notice.test", 0)
        assert Event.objects.get(kind="notice.tested").payload["ok"] is True
        assert Event.objects.get(kind="notice.tested").summary == f"A test of notice {row.pk} arrived"

    def test_that_fails_is_told_and_not_tried_again(self, subscribed, server, now):
        row = subscribed()
        server.script.append(answer(500))
        subscribing.test(row, by=ANNA, now=now)
        assert send(row, now) == 1
        told = Event.objects.get(kind="notice.tested")
        assert (told.payload["ok"], told.payload["status"]) == (False, 500)
        assert "did not arrive: answered 500" in told.summary
        row.refresh_from_db()
        assert row.failures == 0
        assert send(row, now + timedelta(hours=2)) == 0


class TestPauseAndResume:
    def test_twice_is_a_conflict(self, subscribed, now):
        row = subscribed()
        with pytest.raises(Conflict):
            subscribing.resume(row, by=ANNA, now=now)
        subscribing.pause(row, by=ANNA, now=now)
        with pytest.raises(Conflict):
            subscribing.pause(row, by=ANNA, now=now)


class TestMail:
    @pytest.fixture
    def mailed(self, settings, now):
        settings.EMAIL_IS_SET_UP = True
        return subscribing.subscribe("email", "anna@example.org", kind="task.", by=ANNA, now=now)[0]

    def test_goes_out_with_one_line_of_subject(self, mailed, now):
        event = tell(reason="needs\r\nBcc: eve@example.org", now=now)
        notices.feed(now=now)
        assert send(mailed, now) == 1
        [letter] = mail.outbox
        assert letter.to == ["anna@example.org"]
        assert "\n" not in letter.subject
        assert f"/events/{event}/" in letter.body
        made = Delivery.objects.get()
        assert letter.extra_headers["Message-ID"] == f"<{made.delivery_id}@andon>"
        assert (made.status, made.response_status) == ("delivered", None)

    def test_calls_a_task_by_its_title(self, mailed, now):
        task = rows.task("Choose the soil")
        notices.feed(now=now)
        send(mailed, now)
        assert mail.outbox[0].subject.startswith("[Andon] “Choose the soil” made")
        assert task.pk in mail.outbox[0].body

    def test_refuses_what_is_no_address_and_a_secret(self, mailed, now):
        for address in ("nobody", "a@b@c", "anna@example.org\nBcc: x@example.org"):
            with pytest.raises(Rejected, match="invalid-address"):
                subscribing.subscribe("email", address, by=ANNA, now=now)
        with pytest.raises(Rejected, match="invalid-secret"):
            subscribing.subscribe("email", "b@example.org", secret=SECRET, by=ANNA, now=now)

    def test_a_server_that_refuses_is_a_failure(self, mailed, now, settings):
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
        tell(now=now)
        notices.feed(now=now)
        send(mailed, now)
        assert "the mail server refused" in Delivery.objects.get().error
        settings.EMAIL_IS_SET_UP = False
        send(mailed, now + timedelta(minutes=1))
        assert "EMAIL_URL" in Delivery.objects.get().error


def test_walks_its_table(subscribed, now):
    row = subscribed()
    for verb, (sources, target) in DELIVERY_MOVES.items():
        for status in DeliveryStatus:
            made = Delivery.objects.create(
                subscription=row,
                status=status,
                created_at=now,
                next_try_at=now,
                delivered_at=now if status == "delivered" else None,
            )
            at = now if target == "delivered" else None
            if status in sources:
                delivering._move(made, verb, delivered_at=at)
                assert Delivery.objects.get(pk=made.pk).status == target
            else:
                with pytest.raises(Conflict):
                    delivering._move(made, verb, delivered_at=at)


def test_old_ones_are_pruned(subscribed, now):
    row = subscribed()
    for age, status in ((31, "delivered"), (29, "delivered"), (31, "dead"), (91, "dead"), (200, "pending")):
        at = now - timedelta(days=age)
        Delivery.objects.create(
            subscription=row,
            status=status,
            created_at=at,
            next_try_at=at,
            delivered_at=at if status == "delivered" else None,
            delivery_id=uuid.uuid4(),
        )
    assert notices.prune(now=now) == 2
    assert notices.prune(now=now) == 0


def test_an_idle_tick_costs_few_queries(subscribed, now, django_assert_max_num_queries):
    for number in range(5):
        subscribed(kind=f"loop.{number}")
    notices.feed(now=now)
    with django_assert_max_num_queries(4):
        assert notices.tick(now=now) == {"fed": 0, "senders": 0}
    Subscription.objects.all().delete()
    with django_assert_max_num_queries(2):
        notices.tick(now=now)


@pytest.mark.django_db(transaction=True)
class TestAtOnce:
    def test_two_senders_deliver_once(self, subscribed, server, now):
        row = subscribed()
        for _ in range(20):
            tell(now=now)
        for _ in range(2):
            notices.feed(now=now)
        at = timezone.now()
        tries: list[int] = []

        def work() -> None:
            from django.db import connection

            tries.extend(notices.send_to(row.pk, clock=lambda: at) for _ in range(40))
            connection.close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        notices.send_to(row.pk, clock=lambda: at)
        assert len(server.heard) == 20
        assert len({heard.json["delivery"] for heard in server.heard}) == 20

    def test_two_feeders_make_one_delivery_an_event(self, subscribed, now):
        subscribed()
        for _ in range(30):
            tell(now=now)
        made: list[int] = []

        def work() -> None:
            from django.db import connection

            made.extend(notices.feed(now=now) for _ in range(5))
            connection.close()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(made) == Delivery.objects.count() == 30

    def test_the_tick_has_the_pool_send(self, subscribed, server):
        at = timezone.now()
        subscribed()
        tell(now=at)
        assert notices.tick(now=timezone.now()) == {"fed": 1, "senders": 1}
        deadline = time.monotonic() + 10
        while not server.heard and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(server.heard) == 1

    def test_a_slow_server_holds_up_no_other_and_at_most_four_threads(self, subscribed, server, monkeypatch):
        at = timezone.now()
        for number in range(6):
            subscribed(kind="task.", about="task:t"[:number])
        tell(now=at)
        notices.feed(now=at)
        release = threading.Event()
        monkeypatch.setattr(notices, "_post", lambda _: (release.wait(10), 200)[1])
        started = [notices.send_due(now=timezone.now()) for _ in range(3)]
        assert started == [4, 0, 0]
        release.set()
