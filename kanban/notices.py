"""Notices on their way: events become deliveries, deliveries become webhooks and e-mail.

An outbox: a subscription is fed from the event log, one delivery an event; each delivery is leased, sent with no
transaction open, and its outcome recorded. What a crash leaves between is sent again under the same delivery id.
Any number of hosts may do it at once.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache, partial
from threading import Lock
from typing import Any

import orjson
from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.views.decorators.debug import sensitive_variables

from kanban import webhooks
from kanban.lifecycle import delivering, subscribing
from kanban.models import Delivery, Subscription
from kanban.states import DeliveryStatus, Target
from projects import jobs
from projects import queries as projects
from projects.errors import Conflict
from projects.events import WIRE
from projects.models import Event, EventFloor
from projects.sentences import sentence
from projects.templatetags.andon import visible

# Events looked at for one subscription in one pass, and how many of its notices may wait before it is fed no more.
BATCH = 500
MOST_WAITING = 1000
# Of the second pool's 16 threads: those that start and stop things must find some idle.
MOST_SENDERS = 4
# One sender's turn; then others have theirs.
MOST_A_TURN = 50
TURN_S = 20.0
KEPT = timedelta(days=30)
# As long as the event log itself.
DEAD_KEPT = timedelta(days=90)
MOST_PRUNED = 5000
log = logging.getLogger("andon.notices")

_sending: set[int] = set()
_lock = Lock()


def tick(*, now: datetime) -> dict[str, int]:
    """Feed subscriptions and have the second pool send what is due; returns counts."""
    return {"fed": feed(now=now), "senders": send_due(now=now)}


def feed(*, now: datetime) -> int:
    """Make deliveries of what happened since each subscription was fed last, at most 500 events each.

    Each in a transaction of its own; one poison row stops nobody. Returns how many deliveries were made.
    """
    subscriptions = list(Subscription.objects.filter(paused_at=None))
    if not subscriptions:
        return 0
    head, floor = subscribing.newest_event(), _floor()
    # Most stand at the same place and read the same rows.
    events = cache(_events_after)
    made = 0
    for subscription in subscriptions:
        try:
            if subscription.cursor < floor:
                delivering.note_missed(subscription, floor, now=now)
            elif subscription.cursor < head and _has_room(subscription):
                rows = events(subscription.cursor)
                if rows:
                    made += delivering.feed(subscription, rows, through=rows[-1]["id"], now=now)
        except Exception:
            log.exception("%s cannot be fed", subscription)
    return made


def _floor() -> int:
    return EventFloor.objects.values_list("pruned_through", flat=True).first() or 0


def _events_after(cursor: int) -> list[dict[str, Any]]:
    return list(Event.objects.filter(id__gt=cursor).order_by("id").values(*WIRE)[:BATCH])


def _has_room(subscription: Subscription) -> bool:
    """Say whether so few wait that more may be made; what is not fed now stays in the log."""
    waiting = Delivery.objects.filter(subscription=subscription, status=DeliveryStatus.PENDING)
    return waiting.order_by()[:MOST_WAITING].count() < MOST_WAITING


def send_due(*, now: datetime) -> int:
    """Have a sender started for each subscription with something to send now, at most four at once. Returns how many.

    Those that were not served the longest come first.
    """
    due = Delivery.objects.filter(
        Q(leased_until=None) | Q(leased_until__lte=now),
        subscription=OuterRef("pk"),
        status=DeliveryStatus.PENDING,
        next_try_at__lte=now,
    )
    is_open = Q(paused_at=None) & (Q(retry_at=None) | Q(retry_at__lte=now))
    waiting = Subscription.objects.filter((is_open & Exists(due)) | Exists(due.filter(event_id=None)))
    started = 0
    for pk in waiting.order_by("last_delivered_at", "pk").values_list("pk", flat=True)[: MOST_SENDERS * 2]:
        with _lock:
            if len(_sending) >= MOST_SENDERS or pk in _sending:
                continue
            _sending.add(pk)
        jobs.submit(f"notices of {pk}", _turn, pk)
        started += 1
    return started


def _turn(pk: int) -> int:
    try:
        return send_to(pk)
    finally:
        with _lock:
            _sending.discard(pk)


def send_to(pk: int, clock: Callable[[], datetime] = timezone.now) -> int:
    """Send what is due of one subscription, one after another, for twenty seconds at most. Returns how many tries."""
    ends = time.monotonic() + TURN_S
    tries = 0
    while tries < MOST_A_TURN and time.monotonic() < ends:
        delivery = delivering.lease(pk, now=clock())
        if delivery is None:
            break
        tries += 1
        try:
            status = _send(delivery)
        except webhooks.Failed as why:
            outcome: Callable[..., None] = partial(delivering.failed, delivery, str(why), status=why.status)
        except Exception as error:
            log.exception("notice %s", delivery)
            outcome = partial(delivering.failed, delivery, f"it cannot be sent: {type(error).__name__}", status=None)
        else:
            outcome = partial(delivering.delivered, delivery, status=status)
        try:
            outcome(now=clock())
        except Conflict:
            log.info("notice %s was settled by another sender", delivery)
    return tries


def _send(delivery: Delivery) -> int | None:
    if delivery.subscription.target == Target.EMAIL:
        _mail(delivery)
        return None
    return _post(delivery)


@sensitive_variables()
def _post(delivery: Delivery) -> int:
    subscription = delivery.subscription
    try:
        where = webhooks.endpoint(subscription.address)
    except webhooks.Unusable as why:
        raise webhooks.Failed(str(why)) from None
    body = orjson.dumps({"delivery": str(delivery.delivery_id), "event": delivery.document})
    timestamp = int(time.time())
    headers = {
        "X-Andon-Delivery": str(delivery.delivery_id),
        "X-Andon-Event": delivery.kind,
        "X-Andon-Timestamp": str(timestamp),
        "X-Andon-Signature": webhooks.signature(subscription.secret, timestamp, body),
    }
    return webhooks.post(where, body, headers, listed=settings.ANDON_WEBHOOK_HOSTS)


def _mail(delivery: Delivery) -> None:
    """Send one e-mail; its Message-ID is the delivery's, so that one sent twice can be seen to be the same."""
    if not settings.EMAIL_IS_SET_UP:
        raise webhooks.Failed("e-mail is not set up here any more: EMAIL_URL is unset")
    event = delivery.document
    title = projects.titles({event["subject"]}).get(event["subject"], "")
    told = visible(" ".join(sentence(event["kind"], event["subject"], event["payload"], title).split()))
    lines = [
        told or event["subject"],
        "",
        f"{event['kind']} · {event['subject']} · {_moment(event['at'])}",
        f"{settings.ANDON_URL}/events/{event['id']}/" if event["id"] else f"{settings.ANDON_URL}/settings/notices/",
    ]
    message = EmailMessage(
        subject=f"[Andon] {told or event['kind']}"[:200],
        body="\n".join(lines),
        from_email=settings.DEFAULT_FROM_EMAIL,
        to=[delivery.subscription.address],
        headers={"Message-ID": f"<{delivery.delivery_id}@andon>", "X-Andon-Delivery": str(delivery.delivery_id)},
        connection=get_connection(),
    )
    try:
        message.send()
    except OSError as error:
        # smtplib's errors are OSErrors; their text is the server's answer.
        raise webhooks.Failed(f"the mail server refused: {error}") from None


def _moment(text: str) -> str:
    at = parse_datetime(text)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else text


def prune(*, now: datetime) -> int:
    """Delete deliveries that arrived over 30 days ago, and those given up over 90 days ago, in batches."""
    keys = list(old(now).order_by().values_list("pk", flat=True)[:MOST_PRUNED])
    return Delivery.objects.filter(pk__in=keys).delete()[0] if keys else 0


def old(now: datetime) -> QuerySet[Delivery]:
    """Return the deliveries that `prune` deletes."""
    arrived = Q(status=DeliveryStatus.DELIVERED, created_at__lt=now - KEPT)
    return Delivery.objects.filter(arrived | Q(status=DeliveryStatus.DEAD, created_at__lt=now - DEAD_KEPT))
