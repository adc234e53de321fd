"""The repair bench of this app: everything can be looked at, the little that may be changed goes through verbs."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from projects import access, importer, queries
from projects.bench import ByRole, ReadOnly, state_badge
from projects.errors import DomainError
from projects.events import writing
from projects.lifecycle import journals
from projects.models import (
    ApiToken,
    Event,
    EventFloor,
    Iteration,
    JournalFile,
    JournalRecord,
    LoopRegistry,
    LoopRun,
    LoopStop,
    Preference,
    Project,
    Rollback,
    SignInLink,
    Story,
    Tombstone,
    Turn,
    UsageEntry,
)


@admin.register(Event)
class EventAdmin(ReadOnly):
    list_display = ("id", "at", "kind", "subject", "project", "actor", "page_link")
    search_fields = ("kind", "subject", "actor", "project")
    ordering = ("-id",)
    show_full_result_count = False


@admin.register(EventFloor)
class EventFloorAdmin(ReadOnly):
    list_display = ("pruned_through",)


@admin.register(Project)
class ProjectAdmin(ReadOnly):
    list_display = ("slug", "title", "badge", "total", "passed", "failed", "blocked", "error", "page_link")
    list_filter = ("ralph", "running", "node")
    search_fields = ("slug", "title", "path")
    actions = ("read_again",)

    @admin.display(description=_("status"))
    def badge(self, row: Project) -> str:
        return state_badge(queries.status_of(row))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Project]:
        rows = super().get_queryset(request)
        is_list = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("_changelist")
        return rows.defer(*queries.LIGHT) if is_list else rows

    @admin.action(description=_("Read the files of the selected projects again"))
    def read_again(self, request: HttpRequest, rows: QuerySet[Project]) -> None:
        """Forget what was read and have the worker look anew; nothing on disk is touched."""
        count = importer.forget(rows, by=access.actor(request), now=timezone.now())
        messages.success(request, _("%d projects are read again.") % count)


@admin.register(Story)
class StoryAdmin(ReadOnly):
    list_display = ("key", "project", "title", "badge", "priority", "retries", "page_link")
    list_filter = ("state",)
    search_fields = ("key", "title", "project__slug")
    list_select_related = ("project",)

    @admin.display(description=_("state"), ordering="state")
    def badge(self, row: Story) -> str:
        return state_badge(row.state)


@admin.register(Iteration)
class IterationAdmin(ReadOnly):
    list_display = ("project", "number", "story_key", "started_at", "ended_at", "size", "page_link")
    search_fields = ("project__slug", "story_key")
    list_select_related = ("project",)


@admin.register(UsageEntry)
class UsageEntryAdmin(ReadOnly):
    list_display = ("at", "project", "story_key", "iteration", "cost", "model", "failed", "rate_limited")
    list_filter = ("failed", "rate_limited")
    search_fields = ("project__slug", "story_key", "model", "session")
    list_select_related = ("project",)
    show_full_result_count = False


@admin.register(LoopStop)
class LoopStopAdmin(ReadOnly):
    """Who asked for a loop to be stopped, and what came of it."""

    list_display = ("id", "project", "badge", "asked_by", "asked_at", "ended_at", "pid", "code", "page_link")
    list_filter = ("status",)
    search_fields = ("project", "asked_by", "code")

    def page_link(self, row: LoopStop) -> str:
        return format_html('<a href="{}">{}</a>', reverse("project", args=[row.project]), _("open"))


@admin.register(Rollback)
class RollbackAdmin(ReadOnly):
    list_display = ("id", "project", "badge", "story_key", "reverted_commit", "asked_by", "code", "page_link")
    list_filter = ("status",)
    search_fields = ("project", "story_key", "reverted_commit", "new", "code", "asked_by")


@admin.register(JournalFile)
class JournalFileAdmin(ReadOnly):
    list_display = ("name", "family", "generation", "state", "committed_line", "malformed", "written_at", "page_link")
    list_filter = ("family", "state", "node")
    search_fields = ("name", "root")
    actions = ("read_again",)

    @admin.action(description=_("Look at the files of the selected journals again"))
    def read_again(self, request: HttpRequest, rows: QuerySet[JournalFile]) -> None:
        """Forget what the kernel said of the files, so that the next look opens them; no line is read twice."""
        count = journals.look_again(rows)
        messages.success(request, _("%d journals are looked at again.") % count)


@admin.register(JournalRecord)
class JournalRecordAdmin(ReadOnly):
    """Every line that was read, as it was."""

    list_display = ("id", "file", "line_no", "status", "kind", "key", "at")
    list_filter = ("status",)
    search_fields = ("key", "kind")
    list_select_related = ("file",)
    show_full_result_count = False

    def page_link(self, row: JournalRecord) -> str:
        return ""


@admin.register(Turn)
class TurnAdmin(ReadOnly):
    list_display = ("session_id", "turn_id", "effective_state", "collides", "submitted_at", "ended_at", "page_link")
    list_filter = ("effective_state", "pending", "collides")
    search_fields = ("session_id", "turn_id")
    show_full_result_count = False


@admin.register(LoopRun)
class LoopRunAdmin(ReadOnly):
    list_display = ("project", "key", "started_at", "ended_by", "reason", "ambiguous", "merge_state", "page_link")
    list_filter = ("ended_by", "ambiguous", "merge_state")
    search_fields = ("project", "key", "reason")


@admin.register(LoopRegistry)
class LoopRegistryAdmin(ReadOnly):
    list_display = ("project", "problem", "judged_at", "page_link")
    list_select_related = ("project",)
    search_fields = ("project__slug",)


@admin.register(Tombstone)
class TombstoneAdmin(ReadOnly):
    """Sessions that were deleted."""

    list_display = ("session_id", "deleted_by", "deleted_at", "buried_at")
    search_fields = ("session_id", "deleted_by")

    def page_link(self, row: Tombstone) -> str:
        return ""


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnly):
    list_display = (
        "name",
        "role",
        "project",
        "hint",
        "created_by",
        "expires_at",
        "revoked_at",
        "last_used_at",
        "page_link",
    )
    search_fields = ("name", "project")
    list_filter = ("role",)
    actions = ("revoke",)

    @admin.action(description=_("Revoke the selected tokens"))
    def revoke(self, request: HttpRequest, rows: QuerySet[ApiToken]) -> None:
        for token in rows:
            try:
                access.revoke(token, by=access.actor(request), now=timezone.now())
                messages.success(request, _("%s is revoked.") % token.name)
            except DomainError as refusal:
                messages.error(request, refusal.detail)

    def page_link(self, row: Any) -> str:
        return format_html('<a href="{}">{}</a>', reverse("settings"), _("open"))


@admin.register(SignInLink)
class SignInLinkAdmin(ReadOnly):
    list_display = ("user", "created_at", "expires_at", "used_at")
    list_select_related = ("user",)
    actions = ("expire",)

    @admin.action(description=_("Expire the selected links"))
    def expire(self, request: HttpRequest, rows: QuerySet[SignInLink]) -> None:
        for link in rows.select_related("user"):
            try:
                access.expire(link, by=access.actor(request), now=timezone.now())
            except DomainError as refusal:
                messages.error(request, refusal.detail)


@admin.register(Preference)
class PreferenceAdmin(ByRole, admin.ModelAdmin):  # type: ignore[type-arg]  # generic in the stubs only
    list_display = ("user", "theme", "density", "zone", "shortcuts")
    list_select_related = ("user",)


admin.site.unregister(get_user_model())
admin.site.unregister(Group)


@admin.register(get_user_model())
class AccountAdmin(ByRole, UserAdmin):  # type: ignore[type-arg]  # generic in the stubs only
    """People: a role is membership in one of the groups viewer, operator, admin."""

    actions = ("invite",)

    def add_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        with writing():
            return super().add_view(request, *args, **options)

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        """Let the event of a change commit with it."""
        with writing():
            return super().changeform_view(request, *args, **options)

    def delete_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        with writing():
            return super().delete_view(request, *args, **options)

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> Any:  # noqa: A002 (Django's)
        with writing():
            response = super().user_change_password(request, id, form_url)
            user = self.get_object(request, id)
            if response.status_code == 302 and user is not None:
                access.tell("user.password_set", user.get_username(), by=access.actor(request), now=timezone.now())
        return response

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Once the groups are saved the role is known."""
        super().save_related(request, form, formsets, change)
        role = access.role_of(form.instance)
        access.tell(
            "user.changed",
            form.instance.get_username(),
            by=access.actor(request),
            now=timezone.now(),
            role=role or "none",
        )

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        access.tell("user.deleted", obj.get_username(), by=access.actor(request), now=timezone.now())
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for user in queryset:
            with writing():
                self.delete_model(request, user)

    @admin.action(description=_("Make a one-time sign-in link"))
    def invite(self, request: HttpRequest, rows: QuerySet[Any]) -> None:
        for user in rows:
            path = access.invite(user, by=access.actor(request), now=timezone.now())
            messages.success(request, f"{user}: {request.build_absolute_uri(path)}")


@admin.register(Group)
class RoleAdmin(ByRole, GroupAdmin):
    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
