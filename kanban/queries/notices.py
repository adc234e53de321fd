"""Reads over subscriptions and their deliveries, without secrets, and who may change which."""

from typing import Any

from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce

from kanban.models import Delivery, Subscription
from kanban.queries.fields import epoch
from kanban.states import DeliveryStatus
from projects.access import Identity
from projects.errors import Forbidden, Missing
from projects.states import Role


def subscriptions(identity: Identity) -> QuerySet[Subscription]:
    """Return what somebody may see, with how many deliveries are `pending` and `dead`; one query."""
    rows = Subscription.objects.all()
    if identity.project:
        rows = rows.filter(project=identity.project)
    return rows.annotate(pending=_count(DeliveryStatus.PENDING), dead=_count(DeliveryStatus.DEAD))


def _count(status: DeliveryStatus) -> Any:
    """Count along the index: what was delivered is much more, and is not looked at."""
    rows = Delivery.objects.filter(subscription=OuterRef("pk"), status=status, event_id__isnull=False).order_by()
    return Coalesce(Subquery(rows.values("subscription").annotate(n=Count("pk")).values("n")), 0)


def subscription(identity: Identity, pk: int) -> Subscription:
    """Return one that somebody may see; Missing otherwise."""
    row = subscriptions(identity).filter(pk=pk).first()
    if row is None:
        raise Missing("not-found", "There is no such subscription.")
    return row


def may_change(identity: Identity, row: Subscription) -> bool:
    """Say whether somebody may see a whole address, and test, pause, resume and delete: who made it, and admins."""
    return identity.may(Role.ADMIN) or (identity.may(Role.OPERATOR) and row.created_by == identity.name)


def changeable(identity: Identity, pk: int) -> Subscription:
    """Return one that somebody may change; Missing, or Forbidden when it is somebody else's."""
    row = subscription(identity, pk)
    if not may_change(identity, row):
        raise Forbidden(
            "forbidden", f"{row.created_by} made this subscription. Only they and administrators change it."
        )
    return row


def delivery(identity: Identity, pk: int, number: int) -> Delivery:
    """Return a delivery of a subscription that somebody may change."""
    found = deliveries(changeable(identity, pk)).filter(pk=number).first()
    if found is None:
        raise Missing("not-found", "There is no such delivery.")
    return found


def deliveries(row: Subscription, status: str = "") -> QuerySet[Delivery]:
    """Return a subscription's deliveries, newest first."""
    found = Delivery.objects.filter(subscription=row).order_by("-pk")
    return found.filter(status=status) if status else found


def subscription_document(row: Subscription, identity: Identity) -> dict[str, Any]:
    """Return a subscription as REST shows it; its address is cut to its host for who may not change it."""
    return {
        "id": row.pk,
        "target": row.target,
        "address": row.address if may_change(identity, row) else row.host,
        "kind": row.kind,
        "subject": row.about,
        "project": row.project,
        "created_by": row.created_by,
        "created_at": epoch(row.created_at),
        "paused_at": epoch(row.paused_at),
        "paused_by": row.paused_by,
        "paused_reason": row.paused_reason,
        "failures": row.failures,
        "last_error": row.last_error,
        "retry_at": epoch(row.retry_at),
        "last_delivered_at": epoch(row.last_delivered_at),
        "pending": getattr(row, "pending", 0),
        "dead": getattr(row, "dead", 0),
    }


def delivery_document(row: Delivery) -> dict[str, Any]:
    """Return a delivery as REST shows it; `event_id` is null for a test."""
    return {
        "id": row.pk,
        "delivery": str(row.delivery_id),
        "event_id": row.event_id,
        "kind": row.kind,
        "subject": row.subject,
        "status": row.status,
        "attempts": row.attempts,
        "created_at": epoch(row.created_at),
        "next_try_at": epoch(row.next_try_at) if row.status == DeliveryStatus.PENDING else None,
        "delivered_at": epoch(row.delivered_at),
        "response_status": row.response_status,
        "error": row.error,
    }
