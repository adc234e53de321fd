"""What people type about tasks; the verbs judge it."""

import re
import secrets
from decimal import Decimal
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy

from kanban.models import LONGEST_TEXT, LONGEST_TITLE, Profile
from kanban.states import BlockKind, Status, WorkspaceKind
from projects.models import Project

PLAIN = {"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}
# The list of names that base templates put beside a field.
OF_PROFILES = {**PLAIN, "list": "profiles"}
HIGHEST = 1_000_000


def _words(label: Any, *, hint: Any = "", longest: int = 80, **attributes: Any) -> forms.CharField:
    widget = forms.TextInput({**PLAIN, **attributes})
    return forms.CharField(required=False, max_length=longest, label=label, help_text=hint, widget=widget)


def _text(label: Any, *, hint: Any = "", rows: int = 6, required: bool = False) -> forms.CharField:
    widget = forms.Textarea({"rows": rows})
    return forms.CharField(
        required=required, strip=False, max_length=LONGEST_TEXT, label=label, help_text=hint, widget=widget
    )


def _number(label: Any, *, hint: Any = "", least: int = 1, most: int = HIGHEST) -> forms.IntegerField:
    widget = forms.NumberInput({"class": "short", "inputmode": "numeric"})
    return forms.IntegerField(
        required=False, min_value=least, max_value=most, label=label, help_text=hint, widget=widget
    )


class Seen(forms.Form):
    """What the page showed when the button was pressed, and where to go afterwards."""

    seen = forms.CharField(required=False, max_length=60, widget=forms.HiddenInput)
    next = forms.CharField(required=False, max_length=2000, widget=forms.HiddenInput)


class Limits(forms.Form):
    """How long, how dear and how often; empty = no limit of its own."""

    max_runtime_s = _number(
        gettext_lazy("At most so many seconds"), hint=gettext_lazy("Empty = no limit."), most=365 * 86_400
    )
    max_cost_usd = forms.DecimalField(
        required=False,
        min_value=Decimal("0.0001"),
        max_value=Decimal(999_999),
        decimal_places=4,
        label=gettext_lazy("At most so many US dollars"),
        help_text=gettext_lazy("Holds only while the agent reports its cost."),
        widget=forms.NumberInput({"class": "short", "inputmode": "decimal", "step": "any"}),
    )
    failure_limit = _number(
        gettext_lazy("Failures until the breaker opens"), hint=gettext_lazy("Empty = its profile's."), most=1000
    )


class TaskForm(Limits):
    """A new task."""

    title = forms.CharField(
        max_length=LONGEST_TITLE,
        label=gettext_lazy("Title"),
        widget=forms.TextInput({"autocomplete": "off"}),
    )
    body = _text(
        gettext_lazy("What is to be done"), hint=gettext_lazy("Markdown; the worker reads it as it is."), rows=8
    )
    assignee = _words(
        gettext_lazy("Who does it"),
        hint=gettext_lazy("A profile is started by the dispatcher; anybody else takes it by hand."),
        list="profiles",
    )
    priority = _number(gettext_lazy("Priority"), hint=gettext_lazy("Higher first; empty = 0."), least=-HIGHEST)
    tenant = _words(gettext_lazy("Tenant"))
    project = forms.ChoiceField(required=False, label=gettext_lazy("Project"))
    parents = _words(
        gettext_lazy("Waits for"),
        hint=gettext_lazy("Ids of tasks such as t_1a2b3c4d, with spaces between."),
        longest=12_000,
        **{"class": "mono"},
    )
    workspace_kind = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Works in"),
        choices=[
            (WorkspaceKind.SCRATCH, gettext_lazy("a folder of its own")),
            (WorkspaceKind.WORKTREE, gettext_lazy("a git worktree of the project")),
            (WorkspaceKind.DIR, gettext_lazy("a given directory")),
        ],
    )
    workspace_path = _words(
        gettext_lazy("Directory"), hint=gettext_lazy("Absolute, inside a workspace root."), longest=4096
    )
    services_required = forms.BooleanField(
        required=False,
        label=gettext_lazy("Must leave a running service"),
        help_text=gettext_lazy("It is done only when a service that it declared was healthy."),
    )
    triage = forms.BooleanField(required=False, label=gettext_lazy("To be looked at first (triage)"))
    idempotency_key = forms.CharField(required=False, max_length=200, widget=forms.HiddenInput)
    # The column whose "+" was used, and where to go afterwards.
    column = forms.CharField(required=False, max_length=8, widget=forms.HiddenInput)
    next = forms.CharField(required=False, max_length=2000, widget=forms.HiddenInput)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        slugs = list(Project.objects.filter(missing_since=None).order_by("slug").values_list("slug", flat=True))
        wanted = self.initial.get("project") or ""
        if wanted and wanted not in slugs:
            slugs.append(wanted)
        self.fields["project"].choices = [("", gettext_lazy("none")), *((slug, slug) for slug in slugs)]  # type: ignore[attr-defined]

    def clean_parents(self) -> list[str]:
        return [name for name in re.split(r"[\s,;]+", self.cleaned_data["parents"]) if name]

    def fields_of_create(self) -> dict[str, Any]:
        """Return what lifecycle.create is given beside the title."""
        typed = self.cleaned_data
        names = ("body", "assignee", "tenant", "project", "parents", "workspace_path", "max_runtime_s", "max_cost_usd")
        return {
            **{name: typed[name] for name in names},
            "body": typed["body"].replace("\r\n", "\n"),
            "priority": typed["priority"] or 0,
            "workspace_kind": typed["workspace_kind"] or WorkspaceKind.SCRATCH,
            "failure_limit": typed["failure_limit"],
            "services_required": typed["services_required"],
            "triage": typed["triage"] or typed["column"] == Status.TRIAGE,
            "idempotency_key": typed["idempotency_key"],
        }


def new_key() -> str:
    """Return what makes a form that is sent twice one task."""
    return f"page-{secrets.token_hex(8)}"


class EditForm(Seen):
    """What a task says."""

    title = forms.CharField(max_length=LONGEST_TITLE, label=gettext_lazy("Title"))
    body = _text(gettext_lazy("What is to be done"), rows=14)
    mark = forms.CharField(required=False, max_length=16, widget=forms.HiddenInput)


class AssignForm(Seen):
    """Who does it."""

    assignee = _words(gettext_lazy("Who does it"), hint=gettext_lazy("Empty = nobody."), list="profiles")


class PriorityForm(Seen):
    """How soon."""

    priority = forms.IntegerField(
        min_value=-HIGHEST,
        max_value=HIGHEST,
        label=gettext_lazy("Priority"),
        help_text=gettext_lazy("Higher first."),
        widget=forms.NumberInput({"class": "short"}),
    )


class LimitForm(Limits, Seen):
    """The limits of a task that is there."""


class BlockForm(Seen):
    """Why it cannot go on."""

    reason = forms.CharField(
        required=False,
        max_length=2000,
        label=gettext_lazy("Reason"),
        widget=forms.TextInput({"autocomplete": "off"}),
    )
    kind = forms.ChoiceField(
        label=gettext_lazy("It waits for"),
        widget=forms.RadioSelect,
        initial=BlockKind.NEEDS_INPUT,
        choices=[
            (BlockKind.NEEDS_INPUT, gettext_lazy("an answer of a person")),
            (BlockKind.CAPABILITY, gettext_lazy("something its worker cannot do")),
            (BlockKind.DEPENDENCY, gettext_lazy("its parents; it goes on by itself when all are closed")),
            (BlockKind.TRANSIENT, gettext_lazy("time; it goes on by itself after 5, then 15, then 60 minutes")),
        ],
    )


class CompleteForm(Seen):
    """What came of it."""

    result = _text(gettext_lazy("Result"), hint=gettext_lazy("Markdown; tasks that wait for this one read it."))


class AnswerForm(Seen):
    """What somebody says before a blocked task goes on; it becomes a comment."""

    answer = _text(
        gettext_lazy("Your answer"), hint=gettext_lazy("Markdown; the next worker reads it. Empty = it just goes on.")
    )


class CommentForm(forms.Form):
    """Something said about a task."""

    body = _text(gettext_lazy("Comment"), hint=gettext_lazy("Markdown. The next worker reads it."), rows=3)


class LinkForm(forms.Form):
    """A task that this one waits for, or that waits for it."""

    other = _words(gettext_lazy("Task"), longest=40, **{"class": "mono", "placeholder": "t_1a2b3c4d"})
    as_ = forms.ChoiceField(
        label=gettext_lazy("is its"),
        choices=[("parent", gettext_lazy("parent: this waits for it")), ("child", gettext_lazy("child: it waits"))],
    )


class BulkForm(forms.Form):
    """What is to be done with several cards."""

    act = forms.ChoiceField(
        choices=[
            ("move", gettext_lazy("Move")),
            ("assign", gettext_lazy("Assign")),
            ("archive", gettext_lazy("Archive")),
        ]
    )
    to = forms.ChoiceField(required=False, choices=Status.choices)
    assignee = forms.CharField(required=False, max_length=80)
    next = forms.CharField(required=False, max_length=2000)


class PauseForm(forms.Form):
    """Why a profile is paused."""

    reason = forms.CharField(
        required=False, max_length=500, label=gettext_lazy("Reason"), widget=forms.TextInput({"autocomplete": "off"})
    )


def profile_names() -> list[str]:
    """Return what the field of an assignee suggests."""
    return list(Profile.objects.order_by("name").values_list("name", flat=True))
