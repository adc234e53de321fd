"""Verbs of people on notices: subscribe unsubscribe pause resume test."""

import secrets
from datetime import datetime

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError
from django.views.decorators.debug import sensitive_variables

from kanban import webhooks
from kanban.models import Delivery, Subscription
from kanban.states import DeliveryStatus, Target
from projects.errors import Conflict, Missing, Rejected
from projects.events import By, record, writing
from projects.models import Event, EventFloor, Project

MOST_SUBSCRIPTIONS = 200
SHORTEST_SECRET = 16
LONGEST_SECRET = 200
SECRET_PREFIX = "whsec_"  # noqa: S105 (a recognisable beginning, not a secret)


@sensitive_variables("secret", "key")
def subscribe(
    target: str,
    address: str,
    *,
    kind: str = "",
    about: str = "",
    project: str = "",
    secret: str = "",
    by: By,
    now: datetime,
) -> tuple[Subscription, str]:
    """Have events told to an address from now on; returns the row, and the key that its webhooks are signed with.

    The key is made here unless one of 16 to 200 characters is given; it is never to be had again ("" for e-mail).
    `kind` and `about` are beginnings of kinds and subjects, "" = all; `project` is a slug, "" = all. Refuses
    (Rejected) an address that is none or may not be asked, e-mail that is not set up, unknown projects; (Conflict)
    `already-subscribed`, `too-many-subscriptions`. Records notice.subscribed, without the address.
    """
    where = _address(target, address.strip())
    key = _key(target, secret)
    beginnings = (_beginning(kind, "kind", 64), _beginning(about, "subject", 200))
    if project and not (project.isprintable() and Project.objects.filter(slug=project).exists()):
        raise Rejected("unknown-project", "No project has this slug.")
    with writing():
        if Subscription.objects.count() >= MOST_SUBSCRIPTIONS:
            raise Conflict("too-many-subscriptions", f"There are {MOST_SUBSCRIPTIONS} subscriptions. Delete one first.")
        try:
            with writing():
                made = Subscription.objects.create(
                    target=target,
                    address=where,
                    secret=key,
                    kind=beginnings[0],
                    about=beginnings[1],
                    project=project,
                    created_by=by.name,
                    created_at=now,
                    cursor=newest_event(),
                )
        except IntegrityError:
            raise Conflict("already-subscribed", "This address is told of these events already.") from None
        told = {"target": target, "host": made.host, "kinds": made.kind or None, "about": made.about or None}
        record("notice.subscribed", made.subject, by=by, now=now, project=project, **told)
    return made, key


def newest_event() -> int:
    """Return the greatest id that an event ever had, 0 when there never was one."""
    newest = Event.objects.order_by("-id").values_list("id", flat=True).first()
    return newest or EventFloor.objects.values_list("pruned_through", flat=True).first() or 0


def _address(target: str, address: str) -> str:
    if target == Target.EMAIL:
        if not settings.EMAIL_IS_SET_UP:
            raise Rejected("no-email", "E-mail is not set up here: an administrator sets EMAIL_URL. Use a webhook.")
        try:
            validate_email(address)
        except ValidationError:
            raise Rejected("invalid-address", "This is no e-mail address.") from None
        return address
    if target != Target.WEBHOOK:
        raise Rejected("unknown-target", f"A target is one of {', '.join(Target.values)}.")
    try:
        webhooks.check_literal(webhooks.endpoint(address), settings.ANDON_WEBHOOK_HOSTS)
    except webhooks.Unusable as why:
        raise Rejected("invalid-address", str(why)) from None
    return address


def _key(target: str, secret: str) -> str:
    if target == Target.EMAIL:
        if secret:
            raise Rejected("invalid-secret", "E-mail is not signed: leave the secret out.")
        return ""
    if secret and not (SHORTEST_SECRET <= len(secret) <= LONGEST_SECRET and secret.isascii() and secret.isprintable()):
        raise Rejected("invalid-secret", f"A secret has {SHORTEST_SECRET} to {LONGEST_SECRET} plain characters.")
    return secret or SECRET_PREFIX + secrets.token_urlsafe(32)


def _beginning(text: str, what: str, most: int) -> str:
    text = text.strip()
    if len(text) > most or not text.isprintable():
        raise Rejected(f"invalid-{what}", f"The beginning of a {what} has at most {most} characters.")
    return text.encode("utf-8", "replace").decode()


def locked_subscription(pk: int) -> Subscription:
    """Read a subscription for this transaction; Missing when there is none."""
    row = Subscription.objects.select_for_update().filter(pk=pk).first()
    if row is None:
        raise Missing("not-found", "There is no such subscription.")
    return row


def unsubscribe(subscription: Subscription, *, by: By, now: datetime) -> None:
    """Delete a subscription with its deliveries. Records notice.unsubscribed with how many had not arrived."""
    with writing():
        row = locked_subscription(subscription.pk)
        waiting = Delivery.objects.filter(subscription=row, status=DeliveryStatus.PENDING).count()
        told = {"target": row.target, "host": row.host, "pending": waiting or None}
        record("notice.unsubscribed", row.subject, by=by, now=now, project=row.project, **told)
        row.delete()


def pause(subscription: Subscription, *, by: By, now: datetime) -> Subscription:
    """Send nothing more until it is resumed; nothing is lost meanwhile. Conflict when paused. Records notice.paused."""
    with writing():
        row = locked_subscription(subscription.pk)
        if row.paused_at is not None:
            raise Conflict("already-paused", "This subscription is paused already.")
        row.paused_at, row.paused_by, row.paused_reason = now, by.name, ""
        row.save(update_fields=["paused_at", "paused_by", "paused_reason"])
        record("notice.paused", row.subject, by=by, now=now, project=row.project, host=row.host)
    return row


def resume(subscription: Subscription, *, by: By, now: datetime) -> Subscription:
    """Send again what waits, at once, and what has happened since. Conflict when not paused. Records notice.resumed."""
    with writing():
        row = locked_subscription(subscription.pk)
        if row.paused_at is None:
            raise Conflict("not-paused", "This subscription is not paused.")
        row.paused_at, row.retry_at, row.failures = None, None, 0
        row.paused_by = row.paused_reason = ""
        row.save(update_fields=["paused_at", "retry_at", "failures", "paused_by", "paused_reason"])
        waiting = Delivery.objects.filter(subscription=row, status=DeliveryStatus.PENDING)
        pending = waiting.update(next_try_at=now, attempts=0)
        told = {"host": row.host, "pending": pending or None}
        record("notice.resumed", row.subject, by=by, now=now, project=row.project, **told)
    return row


def test(subscription: Subscription, *, by: By, now: datetime) -> Delivery:
    """Send one notice that is of no event, now and once, also while paused. Records notice.test_asked.

    What became of it is told by notice.tested.
    """
    with writing():
        row = locked_subscription(subscription.pk)
        if Delivery.objects.filter(subscription=row, event_id=None, status=DeliveryStatus.PENDING).exists():
            raise Conflict("test-under-way", "A test of this subscription is under way already.")
        document = {
            "id": 0,
            "at": now.isoformat().replace("+00:00", "Z"),
            "kind": "notice.test",
            "subject": row.subject,
            "project": row.project,
            "actor": by.name,
            "run": "",
            "payload": {},
        }
        made = Delivery.objects.create(subscription=row, document=document, created_at=now, next_try_at=now)
        record("notice.test_asked", row.subject, by=by, now=now, project=row.project, host=row.host)
    return made
