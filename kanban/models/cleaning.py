"""What an administrator has asked a host's worker to remove now."""

from typing import Any

from django.db import models
from django.db.models import Q


class CleanUp(models.Model):
    """A host is to be cleaned up now, or was; kept for good. One at a time for each host.

    `removed` counts what went: {workspaces, processes, logs, events, deliveries, bytes}. `failed` names what could not
    all be looked at, `left` says that it was too much for once: the rest goes by itself.
    """

    node = models.CharField(max_length=64)
    asked_by = models.CharField(max_length=200)
    asked_via = models.CharField(max_length=8)
    asked_from = models.CharField(max_length=64, blank=True, default="")
    asked_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    removed: Any = models.JSONField(default=dict, blank=True)
    failed: Any = models.JSONField(default=list, blank=True)
    left = models.BooleanField(default=False)

    class Meta:
        verbose_name = "clean-up"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["node"], condition=Q(ended_at=None), name="one_open_clean_up_a_node"),
        ]

    def __str__(self) -> str:
        return f"clean-up of {self.node}"

    def get_absolute_url(self) -> str:
        return "/system/"

    @property
    def subject(self) -> str:
        return f"cleanup:{self.node}"
