"""The repair bench of this app."""

from collections.abc import Callable
from functools import partial

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from projects import access
from projects.bench import ReadOnly, Values
from projects.errors import DomainError
from services import lifecycle, queries, rules
from services.models import SPEC_FIELDS, ManagedProcess, WorkerHost


class ForceForm(forms.Form):
    """Why a process is written off: kept in the log."""

    reason = forms.CharField(
        label=_("Reason"), max_length=500, widget=forms.TextInput({"size": 60, "autocomplete": "off"})
    )


@admin.register(WorkerHost)
class WorkerHostAdmin(ReadOnly):
    list_display = ("node", "host_name", "badge", "tick_at", "started_at", "pid", "version", "watching", "page_link")

    actions = ("forget",)

    @admin.action(description=_("Forget the selected hosts and what they read (they must not tick)"))
    def forget(self, request: HttpRequest, rows: QuerySet[WorkerHost]) -> None:
        for host in rows:
            try:
                count = lifecycle.forget(host, by=access.actor(request), now=timezone.now())
                messages.success(
                    request, _("%(node)s is forgotten, with %(count)d projects.") % {"node": host.node, "count": count}
                )
            except DomainError as refusal:
                messages.error(request, refusal.detail)

    search_fields = ("node", "host_name")

    def page_link(self, row: WorkerHost) -> str:
        return format_html('<a href="{}">{}</a>', reverse("system"), _("open"))


@admin.register(ManagedProcess)
class ManagedProcessAdmin(ReadOnly):
    """What runs. Verbs commit what is wanted and wait for nothing: a process's page shows what comes of it."""

    list_display = (
        "project",
        "name",
        "purpose",
        "badge",
        "since",
        "pid",
        "generation",
        "node",
        "expires_at",
        "page_link",
    )
    list_display_links = ("name",)
    list_filter = ("status", "purpose", ("project", Values))
    search_fields = ("project", "name", "cmd", "owner_wi", "owner_agent")
    ordering = ("project", "name")
    actions = ("start", "stop", "kill", "restart", "extend_an_hour", "force")
    action_groups = {
        _("Run"): ("start", "restart", "extend_an_hour"),
        _("End"): ("stop", "kill"),
        _("Last resort"): ("force",),
    }
    fieldsets = (
        (
            None,
            {"fields": ("project", "name", "purpose", "node", "status", "since", "generation", "outcome", "page_link")},
        ),
        (_("Spec"), {"fields": (*(name for name in SPEC_FIELDS if name != "env"), "env_keys")}),
        (_("Owner"), {"fields": ("owner_agent", "owner_wi", "declared_by", "declared_at", "batch", "position")}),
        (
            _("Process"),
            {
                "fields": (
                    *("pid", "start_ticks", "boot_id", "started_at", "ended_at", "exit_code", "exit_cause"),
                    *("last_error", "exits", "restarts", "crashes", "attempt", "members", "left"),
                )
            },
        ),
        (
            _("Deadlines"),
            {
                "fields": (
                    *("expires_at", "warn_at", "health_by", "retry_at", "term_at", "kill_at", "next_probe_at"),
                    *("last_health_at", "misses", "passes", "log_path", "log_head", "log_mode"),
                )
            },
        ),
    )
    readonly_fields = ("env_keys", "page_link", "log_path")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ManagedProcess]:
        rows = super().get_queryset(request)
        is_list = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("_changelist")
        return rows.defer(*queries.HEAVY) if is_list else rows

    @admin.display(description=_("environment, names only"))
    def env_keys(self, row: ManagedProcess) -> str:
        return ", ".join(sorted(row.env)) or "–"

    def _each(self, request: HttpRequest, rows: QuerySet[ManagedProcess], verb: Callable[..., object]) -> None:
        """Give a verb for each row and tell its worker; a refusal of one stops none of the others."""
        # The queue's file is made at import; commands that need none load the admin too.
        from services.orders import tell

        for row in rows:
            try:
                queries.need_worker(row.node, timezone.now())
                verb(row, by=access.actor(request), now=timezone.now())
                messages.success(request, _("Asked for: %s.") % row)
            except DomainError as refusal:
                messages.error(request, refusal.detail)
            else:
                tell([row])

    @admin.action(description=_("Start the selected processes"))
    def start(self, request: HttpRequest, rows: QuerySet[ManagedProcess]) -> None:
        self._each(request, rows, partial(lifecycle.start, quotas=rules.quotas()))

    @admin.action(description=_("Stop the selected processes"))
    def stop(self, request: HttpRequest, rows: QuerySet[ManagedProcess]) -> None:
        self._each(request, rows, lifecycle.stop)

    @admin.action(description=_("Kill the selected processes at once"))
    def kill(self, request: HttpRequest, rows: QuerySet[ManagedProcess]) -> None:
        self._each(request, rows, lifecycle.kill)

    @admin.action(description=_("Restart the selected processes"))
    def restart(self, request: HttpRequest, rows: QuerySet[ManagedProcess]) -> None:
        self._each(request, rows, lifecycle.restart)

    @admin.action(description=_("Extend the selected processes by 60 minutes"))
    def extend_an_hour(self, request: HttpRequest, rows: QuerySet[ManagedProcess]) -> None:
        self._each(request, rows, partial(lifecycle.extend, minutes=60))

    @admin.action(description=_("Force: write the selected processes off as lost"))
    def force(self, request: HttpRequest, rows: QuerySet[ManagedProcess]) -> HttpResponse | None:
        """Ask for the reason, then write them off; nothing is signalled, the worker lets go of them."""
        from services.orders import tell

        form = ForceForm(request.POST if "reason" in request.POST else None)
        if form.is_valid():
            for row in rows:
                try:
                    lifecycle.force(row, form.cleaned_data["reason"], by=access.actor(request), now=timezone.now())
                    tell([row])
                    messages.success(request, _("Written off as lost: %s.") % row)
                except DomainError as refusal:
                    messages.error(request, refusal.detail)
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": _("Write off as lost"),
            "form": form,
            "rows": rows,
            "opts": self.model._meta,  # noqa: SLF001 (what admin's own templates are given)
            "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
        }
        return TemplateResponse(request, "services/force.html", context)
