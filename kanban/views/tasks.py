"""The page of one task, and how a new one is made."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from kanban import lifecycle
from kanban.forms import CommentForm, LinkForm, TaskForm, new_key, profile_names
from kanban.models import Task
from kanban.pages.tasks import TaskView, get_task
from kanban.states import Status
from kanban.views import answers
from projects import access
from projects.errors import DomainError, Rejected
from projects.events import By, writing
from projects.pages import page
from projects.states import Role

# The field that a refusal of the verb speaks of.
PLACES = {
    "title-missing": "title",
    "title-too-long": "title",
    "unknown-parent": "parents",
    "too-many-parents": "parents",
    "unknown-project": "project",
    "project-missing": "project",
    "unknown-workspace-kind": "workspace_kind",
    "invalid-workspace-path": "workspace_path",
    "workspace-path-missing": "workspace_path",
    "invalid-priority": "priority",
    "invalid-max_cost_usd": "max_cost_usd",
}


@require_safe
def task(request: HttpRequest, task_id: str) -> HttpResponse:
    """One task: what it says, how it does, what can be done with it."""
    view = TaskView(get_task(task_id), timezone.now())
    fragments = {
        "task-head": "kanban/_task_head.html",
        "task-body": "kanban/_task_body.html",
        "task-comments": "kanban/_task_comments.html",
        "task-links": "kanban/_task_links.html",
        "task-side": "kanban/_task_side.html",
    }
    context = {"v": view, "task": view.task, "comment_form": CommentForm(), "link_form": LinkForm()}
    return page(request, "kanban/task.html", context, fragments)


@require_http_methods(["GET", "HEAD", "POST"])
def new(request: HttpRequest) -> HttpResponse:
    """The form of a new task; the board's "+" posts it too."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    if request.method != "POST":
        names = ("title", "assignee", "tenant", "project", "parents", "priority", "column")
        initial: dict[str, Any] = {name: request.GET.get(name, "")[:2000] for name in names if request.GET.get(name)}
        initial.setdefault("tenant", settings.ANDON_BOARD.default_tenant)
        initial |= {"idempotency_key": new_key(), "triage": initial.get("column") == Status.TRIAGE}
        initial["next"] = answers.back_to(request, request.GET.get("next", ""), "")
        return _page(request, TaskForm(initial=initial))
    form = TaskForm(request.POST, initial={"project": request.POST.get("project", "")})
    if not form.is_valid():
        if answers.is_live(request):
            first = next(iter(form.errors.values()))[0]
            return answers.refused(request, Rejected("form-invalid", str(first)), back="")
        return _page(request, form, status=422)
    try:
        made = _create(form, by=access.actor(request))
    except DomainError as refusal:
        if answers.is_live(request):
            return answers.refused(request, refusal, back="")
        place = PLACES.get(refusal.code) or refusal.code.removeprefix("invalid-")
        form.add_error(place if place in form.fields else None, refusal.detail)
        return _page(request, form, status=422)
    back = answers.back_to(request, form.cleaned_data["next"], made.get_absolute_url())
    said = _("%(id)s is made: %(status)s.") % {"id": made.pk, "status": answers.word(made.status)}
    return answers.done(request, said, back=back)


def _create(form: TaskForm, *, by: By) -> Task:
    typed = form.cleaned_data
    now = timezone.now()
    with writing():
        made = lifecycle.create(typed["title"], **form.fields_of_create(), by=by, now=now)
        if typed["column"] == Status.TODO and made.status == Status.READY:
            made = lifecycle.move_to(made, Status.TODO, by=by, now=now)
    return made


def _page(request: HttpRequest, form: TaskForm, *, status: int = 200) -> HttpResponse:
    response = page(request, "kanban/new.html", {"form": form, "profiles": profile_names()})
    response.status_code = status
    response["Cache-Control"] = "no-store"
    return response
