"""What becomes of notices: feed note_missed lease delivered failed send_again; kanban/notices.py sends them."""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from kanban.lifecycle.moves import storable
from kanban.models import Delivery, Subscription
from kanban.models.notices import LONGEST_REASON
from kanban.states import (
    DELIVERY_MOVES,
    NOTICE_BACKOFF,
    NOTICE_FAILURES,
    NOTICE_LEASE,
    NOTICE_LONGEST_WAIT,
    DeliveryStatus,
)
from projects.errors import Conflict, Missing
from projects.events import SWEEP, By, frame_row, record, writing


def feed(subscription: Subscription, rows: Sequence[dict[str, Any]], *, through: int, now: datetime) -> int:
    """Make one delivery of each event that a subscription wants, and note that it was fed through the last of them.

    `rows` are all events after its cursor up to the id `through`, as on the wire but for their time. Of two feeders
    one wins. Returns how many were made.
    """
    with writing():
        mine = Subscription.objects.filter(pk=subscription.pk, cursor=subscription.cursor, paused_at=None)
        if not mine.update(cursor=through):
            return 0
        wanted = [row for row in rows if subscription.wants(row)]
        Delivery.objects.bulk_create(
            Delivery(
                subscription=subscription, event_id=row["id"], document=frame_row(row), created_at=now, next_try_at=now
            )
            for row in wanted
        )
    return len(wanted)


def note_missed(subscription: Subscription, through: int, *, now: datetime) -> bool:
    """Go on behind what retention has deleted before it was fed. Records notice.missed; says whether it was so."""
    with writing():
        mine = Subscription.objects.filter(pk=subscription.pk, cursor=subscription.cursor, cursor__lt=through)
        if not mine.update(cursor=through):
            return False
        told = {"after": subscription.cursor, "through": through}
        record("notice.missed", subscription.subject, by=SWEEP, now=now, project=subscription.project, **told)
    return True


def lease(pk: int, *, now: datetime) -> Delivery | None:
    """Take a subscription's next delivery for this sender alone, None when there is nothing to be sent now.

    One at a time, so that what succeeds arrives in order. A test is sent even while the subscription is paused or
    waits after a failure; of the others the one that was tried least comes first, so that one poison event holds up
    nobody.
    """
    with writing():
        subscription = Subscription.objects.select_for_update().filter(pk=pk).first()
        if subscription is None:
            return None
        pending = Delivery.objects.filter(subscription=subscription, status=DeliveryStatus.PENDING)
        if pending.filter(leased_until__gt=now).exists():
            return None
        due = pending.filter(next_try_at__lte=now)
        found = due.filter(event_id=None).first()
        is_open = subscription.paused_at is None and (subscription.retry_at is None or subscription.retry_at <= now)
        if found is None and is_open:
            found = due.order_by("attempts", "event_id").first()
        if found is None:
            return None
        # Whoever leases holds the subscription's row.
        pending.filter(pk=found.pk).update(attempts=found.attempts + 1, leased_until=now + NOTICE_LEASE)
        found.attempts, found.leased_until, found.subscription = found.attempts + 1, now + NOTICE_LEASE, subscription
    return found


def _move(delivery: Delivery, verb: str, **fields: Any) -> None:
    sources, target = DELIVERY_MOVES[verb]
    rows = Delivery.objects.filter(pk=delivery.pk, status__in=sorted(sources))
    if not rows.update(status=target, **fields):
        raise Conflict("illegal-transition", "This delivery was changed meanwhile. Look again.", to=str(target))
    delivery.status = target
    for name, value in fields.items():
        setattr(delivery, name, value)


def delivered(delivery: Delivery, *, status: int | None, now: datetime) -> None:
    """Note that a delivery has arrived; its subscription's failures are forgotten. Of a test records notice.tested.

    `status` is what a webhook answered. It counts even when another sender has taken it over meanwhile.
    """
    with writing():
        subscription = _owner(delivery)
        if subscription is None:
            return
        _move(delivery, "deliver", delivered_at=now, leased_until=None, response_status=status, error="")
        if delivery.event_id is None:
            _tell_test(subscription, delivery, now)
            return
        forgotten = {"failures": 0, "retry_at": None, "last_error": ""}
        Subscription.objects.filter(pk=subscription.pk).update(last_delivered_at=now, **forgotten)


def failed(delivery: Delivery, error: str, *, status: int | None, now: datetime) -> None:
    """Note that an attempt failed: tried again 10 s · 2^n later, at most an hour; a test is not tried again.

    The twelfth failure in a row pauses the subscription (records notice.paused); a delivery that failed as often
    while others went through is given up (notice.undeliverable) until somebody sends it again. Nothing when another
    sender has taken it over.
    """
    reason = storable(" ".join(error.split()), LONGEST_REASON)
    with writing():
        subscription = _owner(delivery)
        if subscription is None:
            return
        told: dict[str, Any] = {"leased_until": None, "response_status": status, "error": reason}
        mine = Delivery.objects.filter(pk=delivery.pk, status=DeliveryStatus.PENDING, attempts=delivery.attempts)
        wait = backoff(delivery.attempts)
        if not mine.update(**told, next_try_at=now + wait):
            return
        delivery.error, delivery.response_status = reason, status
        if delivery.event_id is None:
            _move(delivery, "give_up")
            _tell_test(subscription, delivery, now)
            return
        failures = subscription.failures + 1
        fields: dict[str, Any] = {"failures": failures, "last_error": reason, "retry_at": now + backoff(failures)}
        gives_up = failures < NOTICE_FAILURES <= delivery.attempts
        if failures >= NOTICE_FAILURES and subscription.paused_at is None:
            why = f"{failures} failures in a row: {reason}"[:LONGEST_REASON]
            fields |= {"paused_at": now, "paused_by": SWEEP.name, "paused_reason": why}
            _tell(subscription, "notice.paused", now, reason=why)
        elif gives_up:
            _move(delivery, "give_up")
            _tell(
                subscription,
                "notice.undeliverable",
                now,
                reason=reason,
                delivery=str(delivery.delivery_id),
                event=delivery.event_id,
            )
        Subscription.objects.filter(pk=subscription.pk).update(**fields)


def send_again(delivery: Delivery, *, by: By, now: datetime) -> Delivery:
    """Send a notice again that was given up or delivered, under the same delivery id. Conflict while it is under way.

    Records notice.sent_again.
    """
    with writing():
        row = _owner(delivery)
        if row is None:
            raise Missing("not-found", "There is no such subscription.")
        fields = {"attempts": 0, "next_try_at": now, "delivered_at": None, "leased_until": None, "error": ""}
        _move(delivery, "send_again", **fields)
        told = {"host": row.host, "delivery": str(delivery.delivery_id)}
        record("notice.sent_again", row.subject, by=by, now=now, project=row.project, **told)
    return delivery


def _owner(delivery: Delivery) -> Subscription | None:
    return Subscription.objects.select_for_update().filter(pk=delivery.subscription_id).first()


def backoff(failures: int) -> timedelta:
    """Return how long to wait after so many failures: 10 s · 2^(n-1), at most an hour, and up to a tenth less."""
    wait = min(NOTICE_BACKOFF * (1 << min(failures - 1, 16)), NOTICE_LONGEST_WAIT)
    return wait * (1 - random.random() / 10)  # noqa: S311 (spreads retries, guards nothing)


def _tell_test(subscription: Subscription, delivery: Delivery, now: datetime) -> None:
    is_there = delivery.status == DeliveryStatus.DELIVERED
    told = {"ok": is_there, "status": delivery.response_status, "reason": delivery.error or None}
    _tell(subscription, "notice.tested", now, **told)


def _tell(subscription: Subscription, kind: str, now: datetime, **payload: Any) -> None:
    record(kind, subscription.subject, by=SWEEP, now=now, project=subscription.project, **payload)
