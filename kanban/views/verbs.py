"""The verbs of one task as forms post them; what needs an answer, or ends a worker, asks first."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods, require_POST

from kanban import lifecycle, states
from kanban.forms import (
    AnswerForm,
    AssignForm,
    BlockForm,
    CommentForm,
    CompleteForm,
    EditForm,
    LimitForm,
    LinkForm,
    PriorityForm,
    Seen,
    profile_names,
)
from kanban.models import Task
from kanban.pages import verbs
from kanban.pages.cards import seen
from kanban.pages.tasks import edit_mark, get_task
from kanban.states import Status
from kanban.views import answers
from projects import access
from projects.errors import Conflict, DomainError, Missing
from projects.events import By, writing
from projects.pages import page
from projects.states import Role
from projects.templatetags.andon import visible

Typed = dict[str, Any]
# So much of what a worker asked stands above the answer, in characters.
QUESTION_SHOWN = 4000
FORMS: dict[str, type[Seen]] = {
    "edit": EditForm,
    "assign": AssignForm,
    "prioritise": PriorityForm,
    "limit": LimitForm,
    "block": BlockForm,
    "complete": CompleteForm,
    "unblock": AnswerForm,
}


@require_http_methods(["GET", "HEAD", "POST"])
def verb(request: HttpRequest, task_id: str, name: str) -> HttpResponse:
    """A verb on a task: GET asks, POST does it."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    task = get_task(task_id)
    if name not in VERBS:
        raise Missing("not-found", _("Nothing of that kind can be done with a task."))
    button = verbs.verb(task, name)
    form_class = FORMS.get(name, Seen)
    if request.method != "POST":
        if not button.asks and name not in FORMS:
            return HttpResponseNotAllowed(["POST"])
        if name == "unblock" and not button.asks:
            form_class = Seen
        return _ask(request, task, button, form_class(initial=_initial(request, task), auto_id=f"id_{name}_%s"))
    form = form_class(request.POST, auto_id=f"id_{name}_%s")
    if not form.is_valid():
        response = _ask(request, task, button, form)
        response.status_code = 422
        return response
    typed = form.cleaned_data
    back = answers.back_to(request, typed["next"], answers.came_from(request, task.get_absolute_url()))
    try:
        before, after, said = _act(task, name, typed, by=access.actor(request))
    except DomainError as refusal:
        return answers.refused(request, refusal, back=back)
    return answers.done(request, said, back=back, undo=answers.undo_token(before, after))


def _act(task: Task, name: str, typed: Typed, *, by: By) -> tuple[Task, Task, str]:
    with writing():
        before = lifecycle.locked(task.pk)
        if name == "edit":
            _check_edit(before, typed)
        else:
            answers.check_seen(before, typed["seen"])
        if why := verbs.why_not(before, name):
            raise Conflict("illegal-transition", why)
        act, said = VERBS[name]
        return before, act(before, typed, by), said(before)


def _check_edit(task: Task, typed: Typed) -> None:
    """Refuse an edit of what somebody else has edited meanwhile: both are shown."""
    if not typed["mark"] or typed["mark"] == edit_mark(task):
        return
    changes = [
        {"label": _("Title"), "then": typed["title"], "now": task.title},
        {"label": _("Text"), "then": typed["body"][:2000], "now": task.body[:2000]},
    ]
    detail = _("Somebody else has edited %s meanwhile. What you typed is below; nothing was changed by you.") % task.pk
    raise Conflict("changed-meanwhile", detail, changes=changes, back=task.get_absolute_url())


def _initial(request: HttpRequest, task: Task) -> Typed:
    return {
        "seen": request.GET.get("seen") or seen(task),
        "next": answers.came_from(request, task.get_absolute_url()),
        "mark": edit_mark(task),
        "title": task.title,
        "body": task.body,
        "assignee": task.assignee,
        "priority": task.priority,
        **{name: getattr(task, name) for name in LimitForm.base_fields if hasattr(task, name)},
        "result": task.result,
    }


def _ask(request: HttpRequest, task: Task, button: verbs.Verb, form: forms.Form) -> HttpResponse:
    title, body = str(QUESTIONS.get(button.name, "%s")), ""
    if task.status == Status.RUNNING and button.name in {"block", "complete", "archive", "release", "review"}:
        body = _("Its worker is stopped: what it has done in its workspace stays. This cannot be undone.")
    is_answer = button.name == "unblock" and states.is_question(task.block_kind, task.block_reason)
    if is_answer:
        title, body = _("Answer %s, and let it go on?"), visible(Truncator(task.block_reason).chars(QUESTION_SHOWN))
    context = {
        "title": title % task.pk,
        "body": body,
        "task": task,
        "action": request.path,
        "label": _("Unblock") if is_answer else button.label.removesuffix("…"),
        "danger": button.danger,
        "back": form["next"].value() or task.get_absolute_url(),
        "form": form,
        "refusal": button.why,
        "profiles": profile_names() if button.name == "assign" else [],
        "is_wide": button.name == "edit",
    }
    return page(request, "kanban/ask.html", context)


@require_POST
def comment(request: HttpRequest, task_id: str) -> HttpResponse:
    """Say something about a task."""
    task = get_task(task_id)
    by, form = access.actor(request), CommentForm(request.POST)
    form.is_valid()
    text = form.cleaned_data.get("body", "").replace("\r\n", "\n")
    back = f"{task.get_absolute_url()}#comments"
    try:
        lifecycle.comment(task, text, author=_author(by), by=by, now=timezone.now())
    except DomainError as refusal:
        return answers.refused(request, refusal, back=back)
    return answers.done(request, _("Your comment is there."), back=back)


@require_POST
def link(request: HttpRequest, task_id: str) -> HttpResponse:
    """Have a task wait for another, or another for it."""
    task, form = get_task(task_id), LinkForm(request.POST)
    form.is_valid()
    other = form.cleaned_data.get("other", "").strip()
    parent, child = (task.pk, other) if form.cleaned_data.get("as_") == "child" else (other, task.pk)
    return _edge(request, task, lifecycle.link, (parent, child), said=_("Linked."))


@require_POST
def unlink(request: HttpRequest, task_id: str) -> HttpResponse:
    """Have two tasks no longer wait; the button's value names the other: `parent:t_…` or `child:t_…`."""
    task = get_task(task_id)
    kind, _colon, other = request.POST.get("edge", "").partition(":")
    parent, child = (task.pk, other) if kind == "child" else (other, task.pk)
    return _edge(request, task, lifecycle.unlink, (parent, child), said=_("No longer linked."))


def _edge(
    request: HttpRequest, task: Task, act: Callable[..., None], edge: tuple[str, str], *, said: str
) -> HttpResponse:
    back = f"{task.get_absolute_url()}#links"
    try:
        act(*edge, by=access.actor(request), now=timezone.now())
    except DomainError as refusal:
        return answers.refused(request, Conflict(refusal.code, refusal.detail), back=back)
    return answers.done(request, said, back=back)


def _to(status: Status) -> Callable[[Task, Typed, By], Task]:
    return lambda task, typed, by: lifecycle.move_to(task, status, by=by, now=timezone.now())


def _plain(act: Callable[..., Task]) -> Callable[[Task, Typed, By], Task]:
    return lambda task, typed, by: act(task, by=by, now=timezone.now())


def _edit(task: Task, typed: Typed, by: By) -> Task:
    body = typed["body"].replace("\r\n", "\n")
    return lifecycle.edit(task, title=typed["title"], body=body, by=by, now=timezone.now())


def _assign(task: Task, typed: Typed, by: By) -> Task:
    return lifecycle.assign(task, typed["assignee"], by=by, now=timezone.now())


def _prioritise(task: Task, typed: Typed, by: By) -> Task:
    return lifecycle.prioritise(task, typed["priority"], by=by, now=timezone.now())


def _limit(task: Task, typed: Typed, by: By) -> Task:
    limits = {name: typed[name] for name in ("max_runtime_s", "max_cost_usd", "failure_limit")}
    return lifecycle.limit(task, **limits, by=by, now=timezone.now())


def _unblock(task: Task, typed: Typed, by: By) -> Task:
    if answer := typed["answer"].replace("\r\n", "\n").strip():
        lifecycle.comment(task, answer, author=_author(by), by=by, now=timezone.now())
    return lifecycle.unblock(task, by=by, now=timezone.now())


def _author(by: By) -> str:
    return by.name.partition(":")[2] or by.name


def _block(task: Task, typed: Typed, by: By) -> Task:
    return lifecycle.block(task, typed["reason"], kind=typed["kind"], by=by, now=timezone.now())


def _complete(task: Task, typed: Typed, by: By) -> Task:
    result = typed["result"].replace("\r\n", "\n")
    return lifecycle.complete(task, result=result, by=by, now=timezone.now())


Said = Callable[[Task], str]
VERBS: dict[str, tuple[Callable[[Task, Typed, By], Task], Said]] = {
    "approve": (_plain(lifecycle.approve), lambda task: _("%s is approved.") % task.pk),
    "send_back": (_plain(lifecycle.send_back), lambda task: _("%s is sent back.") % task.pk),
    "unblock": (_unblock, lambda task: _("%s goes on.") % task.pk),
    "ready": (_to(Status.READY), lambda task: _("%s is ready.") % task.pk),
    "todo": (_to(Status.TODO), lambda task: _("%s is held.") % task.pk),
    "triage": (_to(Status.TRIAGE), lambda task: _("%s is back in triage.") % task.pk),
    "reopen": (_plain(lifecycle.reopen), lambda task: _("%s is open again.") % task.pk),
    "archive": (_plain(lifecycle.archive), lambda task: _("%s is archived.") % task.pk),
    "release": (_plain(lifecycle.release), lambda task: _("%s is released; its worker is being stopped.") % task.pk),
    "review": (_plain(lifecycle.request_review), lambda task: _("%s is in review.") % task.pk),
    "complete": (_complete, lambda task: _("%s is done.") % task.pk),
    "block": (_block, lambda task: _("%s is blocked.") % task.pk),
    "assign": (_assign, lambda task: _("%s is assigned.") % task.pk),
    "prioritise": (_prioritise, lambda task: _("The priority of %s is set.") % task.pk),
    "limit": (_limit, lambda task: _("The limits of %s are set.") % task.pk),
    "edit": (_edit, lambda task: _("%s is saved.") % task.pk),
}


# What each page that asks is called.
QUESTIONS: dict[str, Promise] = {
    "unblock": gettext_lazy("Let %s go on?"),
    "release": gettext_lazy("Release %s?"),
    "review": gettext_lazy("Send %s to review?"),
    "archive": gettext_lazy("Archive %s?"),
    "complete": gettext_lazy("Complete %s"),
    "block": gettext_lazy("Block %s"),
    "assign": gettext_lazy("Who does %s?"),
    "prioritise": gettext_lazy("Priority of %s"),
    "limit": gettext_lazy("Limits of %s"),
    "edit": gettext_lazy("Edit %s"),
}
