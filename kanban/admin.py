"""The repair bench of this app: rows are looked at, what is changed goes through verbs; profiles are edited here."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

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

from kanban import lifecycle, profiles
from kanban.models import Board, CleanUp, Comment, Link, Profile, Run, Task
from kanban.states import Status
from projects import access
from projects.bench import ByRole, ReadOnly
from projects.errors import DomainError


class ForceForm(forms.Form):
    """Why a task is forced: kept in the log."""

    reason = forms.CharField(
        label=_("Reason"), max_length=500, widget=forms.TextInput({"size": 60, "autocomplete": "off"})
    )


def each(request: HttpRequest, rows: QuerySet[Any], verb: Callable[..., object]) -> None:
    """Give a verb for each row; a refusal of one stops none of the others."""
    for row in rows:
        try:
            verb(row, by=access.actor(request), now=timezone.now())
        except DomainError as refusal:
            messages.error(request, _("Refused for %(row)s: %(why)s") % {"row": row, "why": refusal.detail})
        else:
            messages.success(request, _("Done: %s.") % row)


@admin.register(Task)
class TaskAdmin(ReadOnly):
    """The work. No status is edited: an action gives the verb, and force says why."""

    list_display = ("id", "title", "status", "since", "assignee", "priority", "project", "failures", "page_link")
    list_filter = ("status", "block_kind", "assignee", "tenant", "project")
    search_fields = ("id", "title", "assignee", "tenant", "project", "idempotency_key")
    ordering = ("-active_at",)
    show_full_result_count = False
    actions = ("release", "retry", "archive", "force_ready", "force_blocked")
    fieldsets = (
        (
            None,
            {"fields": ("id", "title", "status", "since", "assignee", "priority", "tenant", "project", "page_link")},
        ),
        (_("Text"), {"fields": ("body", "result")}),
        (
            _("Attempts"),
            {
                "fields": (
                    *("current_run", "lease_owner", "lease_until", "phase", "failures", "violations"),
                    *("failure_limit", "last_error", "not_before", "runs_link"),
                )
            },
        ),
        (
            _("Block"),
            {"fields": ("block_kind", "block_reason", "blocked_by", "unblock_at", "transient_blocks")},
        ),
        (
            _("More"),
            {
                "fields": (
                    *("held", "parents_waived", "services_required", "max_runtime_s", "max_cost_usd"),
                    *("workspace_kind", "workspace_path", "idempotency_key", "created_by", "created_at"),
                    *("started_at", "completed_at", "active_at"),
                )
            },
        ),
    )
    readonly_fields = ("page_link", "runs_link")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Task]:
        rows = super().get_queryset(request)
        is_list = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("_changelist")
        return rows.defer("body", "result") if is_list else rows

    @admin.display(description=_("runs"))
    def runs_link(self, row: Task) -> str:
        return format_html('<a href="{}?task__id__exact={}">{}</a>', _list_of(Run), row.pk, _("its runs"))

    @admin.action(description=_("Release the selected tasks (their workers are stopped)"))
    def release(self, request: HttpRequest, rows: QuerySet[Task]) -> None:
        each(request, rows, lifecycle.release)

    @admin.action(description=_("Retry: unblock the selected tasks and forgive their failures"))
    def retry(self, request: HttpRequest, rows: QuerySet[Task]) -> None:
        each(request, rows, lifecycle.unblock)

    @admin.action(description=_("Archive the selected tasks"))
    def archive(self, request: HttpRequest, rows: QuerySet[Task]) -> None:
        each(request, rows, lifecycle.archive)

    @admin.action(description=_("Force: put the selected tasks to ready"))
    def force_ready(self, request: HttpRequest, rows: QuerySet[Task]) -> HttpResponse | None:
        return self._force(request, rows, Status.READY)

    @admin.action(description=_("Force: put the selected tasks to blocked"))
    def force_blocked(self, request: HttpRequest, rows: QuerySet[Task]) -> HttpResponse | None:
        return self._force(request, rows, Status.BLOCKED)

    def _force(self, request: HttpRequest, rows: QuerySet[Task], target: Status) -> HttpResponse | None:
        """Ask for the reason, then put them there from wherever they are; workers are stopped."""
        form = ForceForm(request.POST if "reason" in request.POST else None)
        if form.is_valid():
            each(request, rows, partial(lifecycle.force, target=target, reason=form.cleaned_data["reason"]))
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": _("Force to ready") if target == Status.READY else _("Force to blocked"),
            "form": form,
            "rows": rows,
            "action": f"force_{target}",
            "opts": self.model._meta,  # noqa: SLF001 (what admin's own templates are given)
            "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
        }
        return TemplateResponse(request, "kanban/force.html", context)


def _list_of(model: type[Any]) -> str:
    return reverse(f"admin:kanban_{model._meta.model_name}_changelist")  # noqa: SLF001 (Django's documented way)


@admin.register(Run)
class RunAdmin(ReadOnly):
    list_display = ("__str__", "profile", "host", "outcome", "exit_code", "started_at", "ended_at", "pid", "page_link")
    list_filter = ("outcome", "profile", "host")
    search_fields = ("task__id", "task__title", "profile", "host", "owner")
    ordering = ("-pk",)
    list_select_related = ("task",)
    readonly_fields = ("page_link",)
    show_full_result_count = False

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "task__id__exact" or super().lookup_allowed(lookup, value, request)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return super().get_queryset(request).select_related("task", "process").defer("task__body", "task__result")


@admin.register(Link)
class LinkAdmin(ReadOnly):
    list_display = ("parent", "child", "page_link")
    search_fields = ("parent__id", "child__id", "parent__title", "child__title")
    list_select_related = ("parent", "child")
    readonly_fields = ("page_link",)
    show_full_result_count = False

    def page_link(self, row: Link) -> str:
        return super().page_link(row.child)

    page_link.short_description = _("page")  # type: ignore[attr-defined]


@admin.register(Comment)
class CommentAdmin(ReadOnly):
    list_display = ("task", "author", "created_at", "page_link")
    search_fields = ("task__id", "author", "body")
    readonly_fields = ("page_link",)
    ordering = ("-pk",)
    list_select_related = ("task",)
    show_full_result_count = False

    def page_link(self, row: Comment) -> str:
        return super().page_link(row.task)

    page_link.short_description = _("page")  # type: ignore[attr-defined]


class ProfileForm(forms.ModelForm):  # type: ignore[type-arg]  # generic in the stubs only
    """A profile as an administrator writes it."""

    class Meta:
        model = Profile
        fields = ("name", "argv", "env", "reports", "concurrency", "failure_limit", "stop_grace_s", "enabled")
        help_texts = {
            "argv": _(
                "A JSON list of texts: the program, then its arguments. {task_id} {title} {workspace} {context_file} "
                "stand for whole arguments; no shell reads it."
            ),
            "env": _("A JSON object of texts. Only administrators see it."),
            "enabled": _("Unknown = as soon as its program is found on a host."),
            "failure_limit": _("Empty = 5."),
        }

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"].strip()
        if "/" in name or not name.isprintable():
            raise forms.ValidationError(_("A name has no slash and no sign that cannot be seen."))
        return name

    def clean_argv(self) -> Any:
        argv = self.cleaned_data["argv"]
        if wrong := profiles.problem(argv):
            raise forms.ValidationError(wrong)
        return argv

    def clean_env(self) -> Any:
        env = self.cleaned_data["env"] or {}
        if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
            raise forms.ValidationError(_('It is an object of texts, such as {"KEY": "value"}.'))
        if any("\x00" in key + value or "=" in key or not key for key, value in env.items()):
            raise forms.ValidationError(_("No key is empty or holds =, and nothing holds a NUL character."))
        return env


@admin.register(Profile)
class ProfileAdmin(ByRole, admin.ModelAdmin):  # type: ignore[type-arg]  # generic in the stubs only
    """Who does the work: what is started, how many at once."""

    form = ProfileForm
    list_display = ("name", "command", "concurrency", "enabled", "where", "paused_at", "page_link")
    search_fields = ("name",)
    actions = ("pause", "resume")
    readonly_fields = ("where", "paused_at", "paused_by", "paused_reason", "page_link")
    fieldsets = (
        (None, {"fields": ("name", "argv", "reports", "env", "enabled", "where", "page_link")}),
        (_("Limits"), {"fields": ("concurrency", "failure_limit", "stop_grace_s")}),
        (_("Pause"), {"fields": ("paused_at", "paused_by", "paused_reason")}),
    )
    show_facets = admin.ShowFacets.NEVER

    @admin.display(description=_("command"))
    def command(self, row: Profile) -> str:
        return json.dumps(row.argv)[:120]

    @admin.display(description=_("found on"))
    def where(self, row: Profile) -> str:
        return ", ".join(row.found_on) or "–"

    @admin.display(description=_("page"))
    def page_link(self, row: Profile) -> str:
        return format_html('<a href="{}#profile-{}">{}</a>', reverse("profiles"), row.pk, _("open"))

    @admin.action(description=_("Pause the selected profiles: no more of their workers are started"))
    def pause(self, request: HttpRequest, rows: QuerySet[Profile]) -> None:
        each(request, rows, lifecycle.pause)

    @admin.action(description=_("Resume the selected profiles"))
    def resume(self, request: HttpRequest, rows: QuerySet[Profile]) -> None:
        each(request, rows, lifecycle.resume)


@admin.register(CleanUp)
class CleanUpAdmin(ReadOnly):
    list_display = ("node", "asked_by", "asked_at", "ended_at", "left", "page_link")
    list_filter = ("node",)


@admin.register(Board)
class BoardAdmin(ReadOnly):
    list_display = ("__str__", "paused_at", "paused_by", "last_pass_at", "page_link")
    actions = ("pause", "resume")

    def page_link(self, row: Board) -> str:
        return format_html('<a href="{}">{}</a>', reverse("kanban"), _("open"))

    page_link.short_description = _("page")  # type: ignore[attr-defined]

    @admin.action(description=_("Pause the dispatcher, on every host"))
    def pause(self, request: HttpRequest, rows: QuerySet[Board]) -> None:
        each(request, rows, lambda row, **who: lifecycle.pause_dispatch(**who))

    @admin.action(description=_("Resume the dispatcher"))
    def resume(self, request: HttpRequest, rows: QuerySet[Board]) -> None:
        each(request, rows, lambda row, **who: lifecycle.resume_dispatch(**who))
