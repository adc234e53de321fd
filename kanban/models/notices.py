"""Who wants to be told of which events, and each notice on its way there."""

import uuid
from typing import Any

from django.db import models
from django.db.models import Q

from kanban import webhooks
from kanban.states import DeliveryStatus, Target

LONGEST_ADDRESS = 1000
LONGEST_REASON = 300


class Subscription(models.Model):
    """Notices of events whose kind and subject begin so and whose project is this one ("" = any) go to an address.

    `cursor` is the id of the event that it was fed through. After a failure nothing is tried before `retry_at`;
    `failures` counts those in a row. `secret` signs webhooks; it is shown once, when it is made.
    """

    target = models.CharField(max_length=8, choices=Target.choices)
    address = models.CharField(max_length=LONGEST_ADDRESS)
    secret = models.CharField(max_length=200, blank=True, default="", editable=False)
    kind = models.CharField(max_length=64, blank=True, default="")
    about = models.CharField(max_length=200, blank=True, default="")
    project = models.CharField(max_length=80, blank=True, default="")
    created_by = models.CharField(max_length=200)
    created_at = models.DateTimeField()

    cursor = models.BigIntegerField()
    failures = models.PositiveIntegerField(default=0)
    last_error = models.CharField(max_length=LONGEST_REASON, blank=True, default="")
    retry_at = models.DateTimeField(null=True, blank=True)
    last_delivered_at = models.DateTimeField(null=True, blank=True)
    paused_at = models.DateTimeField(null=True, blank=True)
    paused_by = models.CharField(max_length=200, blank=True, default="")
    paused_reason = models.CharField(max_length=LONGEST_REASON, blank=True, default="")

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["target", "address", "kind", "about", "project"], name="subscription_unique"
            ),
            models.CheckConstraint(
                condition=(Q(target=Target.WEBHOOK) & ~Q(secret="")) | Q(target=Target.EMAIL, secret=""),
                name="subscription_webhook_is_signed",
            ),
        ]

    def __str__(self) -> str:
        return f"notice {self.pk}"

    @property
    def subject(self) -> str:
        return f"notice:{self.pk}"

    @property
    def host(self) -> str:
        """What everybody may see of the address: a webhook's host, since its path may be a secret; a domain."""
        if self.target == Target.EMAIL:
            return f"…@{self.address.rpartition('@')[2]}"
        return webhooks.endpoint(self.address).origin

    def wants(self, row: dict[str, Any]) -> bool:
        """Say whether an event is to be told; never one about itself, which would go on for ever, nor old history."""
        return bool(
            row["kind"].startswith(self.kind)
            and row["subject"].startswith(self.about)
            and (not self.project or row["project"] == self.project)
            and row["subject"] != self.subject
            and not row["payload"].get("imported")
        )


class Delivery(models.Model):
    """One event for one subscription; `event_id` null = a test. `document` is the event as it stands on the wire.

    It is kept here since the log may be pruned before an address answers again. `attempts` counts what was begun.
    """

    subscription = models.ForeignKey(Subscription, on_delete=models.CASCADE, related_name="deliveries")
    event_id = models.BigIntegerField(null=True, blank=True)
    document = models.JSONField(default=dict)
    delivery_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    status = models.CharField(max_length=9, choices=DeliveryStatus.choices, default=DeliveryStatus.PENDING)
    created_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    next_try_at = models.DateTimeField()
    leased_until = models.DateTimeField(null=True, blank=True)
    delivered_at = models.DateTimeField(null=True, blank=True)
    response_status = models.PositiveIntegerField(null=True, blank=True)
    error = models.CharField(max_length=LONGEST_REASON, blank=True, default="")

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(fields=["subscription", "event_id"], name="delivery_once_an_event"),
            models.CheckConstraint(
                condition=Q(status=DeliveryStatus.DELIVERED, delivered_at__isnull=False)
                | (~Q(status=DeliveryStatus.DELIVERED) & Q(delivered_at__isnull=True)),
                name="delivery_delivered_has_time",
            ),
        ]
        indexes = [
            models.Index(fields=["next_try_at"], name="delivery_due", condition=Q(status=DeliveryStatus.PENDING)),
            models.Index(fields=["subscription", "status", "attempts", "event_id"], name="delivery_next"),
            models.Index(fields=["status", "created_at"], name="delivery_old"),
        ]

    def __str__(self) -> str:
        return str(self.delivery_id)

    @property
    def kind(self) -> str:
        return str(self.document.get("kind", ""))

    @property
    def subject(self) -> str:
        return str(self.document.get("subject", ""))
