"""Start, stop, budget and command of a project's loop, each on a page that asks first; works without JavaScript."""

from decimal import Decimal
from pathlib import Path
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods

from projects import access, budget, editing
from projects import lifecycle as projects
from projects.errors import DomainError, Missing, Rejected, Unfinished
from projects.models import Project
from projects.pages import page
from projects.queries import get_project, need_here
from projects.states import Role
from services import commands, loops

# One TERM lets our runner finish its iteration, however long that takes.
PATIENT_S = 3600
QUICK_S = 30
COMMAND = {"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false", "class": "mono"}


def _iterations(hint: Any, *, least: int) -> forms.IntegerField:
    return forms.IntegerField(
        required=False,
        min_value=least,
        max_value=commands.MOST_ITERATIONS,
        label=gettext_lazy("At most so many iterations"),
        help_text=hint,
        widget=forms.NumberInput({"class": "short", "inputmode": "numeric"}),
    )


def _dollars(hint: Any, *, least: Decimal) -> forms.DecimalField:
    return forms.DecimalField(
        required=False,
        min_value=least,
        max_value=commands.MOST_USD,
        decimal_places=4,
        label=gettext_lazy("At most so many US dollars"),
        help_text=hint,
        widget=forms.NumberInput({"class": "short", "inputmode": "decimal", "step": "any"}),
    )


class StartForm(forms.Form):
    """How far the loop may go."""

    max_iterations = _iterations(gettext_lazy("Empty: 10."), least=1)
    max_cost_usd = _dollars(
        gettext_lazy("Empty: no limit. Holds only while the agent reports its cost."), least=Decimal("0.0001")
    )
    resume = forms.BooleanField(
        required=False,
        label=gettext_lazy("Go on with the last run"),
        help_text=gettext_lazy("What it has used already counts toward the limits."),
    )


class StopForm(forms.Form):
    """How long the loop may take to end."""

    grace_s = forms.TypedChoiceField(
        label=gettext_lazy("When"),
        coerce=int,
        widget=forms.RadioSelect,
        initial=loops.GRACE_S,
        choices=[
            (PATIENT_S, gettext_lazy("After this iteration: it is asked to end, and killed only after an hour")),
            (loops.GRACE_S, gettext_lazy("Now: it is asked to end, and killed after 10 seconds")),
            (0, gettext_lazy("Kill it at once: it can save nothing")),
        ],
    )


class BudgetForm(forms.Form):
    """What a loop may use in all; read before each iteration."""

    max_iterations = _iterations(gettext_lazy("Empty: as it was started."), least=0)
    max_cost_usd = _dollars(gettext_lazy("Empty: as it was started."), least=Decimal(0))


class CommandForm(forms.Form):
    """What starting the loop runs."""

    agent = forms.CharField(
        required=False,
        max_length=2000,
        label=gettext_lazy("Agent for Andon's runner"),
        help_text=gettext_lazy("As typed in a shell, for example: claude -p --output-format json. No shell is used."),
        widget=forms.TextInput(COMMAND),
    )
    command = forms.CharField(
        required=False,
        max_length=2000,
        label=gettext_lazy("Or a command of its own"),
        help_text=gettext_lazy("Run in the project's directory; {max_iterations} stands for the limit."),
        widget=forms.TextInput(COMMAND),
    )


@require_http_methods(["GET", "HEAD", "POST"])
def start(request: HttpRequest, slug: str) -> HttpResponse:
    """Ask how far the loop may go, then start it."""
    project = _operated(request, slug)
    form = StartForm(request.POST if request.method == "POST" else None)
    if form.is_valid():
        said = form.cleaned_data
        limits = commands.Limits(said["max_iterations"], said["max_cost_usd"], said["resume"])
        try:
            row = loops.start(project, limits, by=access.actor(request))
        except DomainError as refusal:
            return _refused(request, project, refusal)
        messages.success(
            request,
            _("The loop is started, process %d.") % row.pid if row.pid else _("The loop is being started."),
        )
        return HttpResponseRedirect(project.get_absolute_url())
    context = {"title": _("Start the loop of %s") % project.slug, "form": form, "label": _("Start")}
    try:
        command = commands.command(project, commands.Limits())
        context |= {"command": command.shown, "source": command.source, "budget": budget.read(Path(project.path))[0]}
    except DomainError as refusal:
        context["refusal"] = refusal.detail
    return _page(request, project, "services/loop_start.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def stop(request: HttpRequest, slug: str) -> HttpResponse:
    """Ask whether the iteration may end first, then stop the loop, whoever started it."""
    project = _operated(request, slug)
    form = StopForm(request.POST if request.method == "POST" else None)
    if form.is_valid():
        grace_s, by = form.cleaned_data["grace_s"], access.actor(request)
        try:
            if grace_s > QUICK_S:
                loops.ask_stop(project, grace_s=grace_s, by=by)
                messages.success(request, _("The loop ends after its iteration."))
            else:
                done = loops.stop(project, grace_s=grace_s, by=by)
                messages.success(request, _stopped_words(done.state, done.pid))
        except DomainError as refusal:
            return _refused(request, project, refusal)
        return HttpResponseRedirect(project.get_absolute_url())
    title = _("Stop the loop of %s?") % project.slug
    body = _("What an iteration that is cut off has done stays as it is on disk; its story stays open.")
    if not project.running and loops.live(project) is None:
        body = _("No loop is seen to run here. What its pid file names is stopped all the same.")
    context = {"title": title, "body": body, "form": form, "label": _("Stop"), "danger": True}
    return _page(request, project, "confirm.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def set_budget(request: HttpRequest, slug: str) -> HttpResponse:
    """Set what the loop may use; a runner that is at work reads it before its next iteration."""
    project = _operated(request, slug)
    need_here(project)
    now, warning = budget.read(Path(project.path))
    initial = {"max_iterations": now.iterations, "max_cost_usd": now.cost}
    form = BudgetForm(request.POST if request.method == "POST" else None, initial=initial)
    if form.is_valid():
        limits = form.cleaned_data["max_iterations"], form.cleaned_data["max_cost_usd"]
        try:
            budget.write(Path(project.path), *limits)
        except OSError as error:
            form.add_error(None, _("The budget could not be written: %s.") % (error.strerror or error))
        else:
            projects.tell_budget(project, *limits, by=access.actor(request), now=timezone.now())
            messages.success(request, _("The budget is set. The runner reads it before its next iteration."))
            return HttpResponseRedirect(project.get_absolute_url())
    body = _(
        "Andon's runner reads these limits from .ralph/budget.json before each iteration; other loops do not know "
        "them. It holds for the loop that runs; 0 ends it after its iteration. The next one is started with limits of "
        "its own."
    )
    context = {
        "title": _("Budget of %s") % project.slug,
        "body": f"{body}\n{warning}".strip(),
        "form": form,
        "label": _("Set"),
    }
    return _page(request, project, "confirm.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def configure(request: HttpRequest, slug: str) -> HttpResponse:
    """Set what starting the loop runs; an administrator's, since it is run as Andon's own user."""
    access.need(request.identity, Role.ADMIN)  # type: ignore[attr-defined]
    project = get_project(slug)
    initial = {"agent": project.loop_agent, "command": project.loop_command}
    form = CommandForm(request.POST if request.method == "POST" else None, initial=initial)
    if form.is_valid():
        try:
            projects.configure(project, **form.cleaned_data, by=access.actor(request), now=timezone.now())
        except Rejected as refusal:
            form.add_error(None, refusal.detail)
        else:
            messages.success(request, _("Starting the loop runs that from now on."))
            return HttpResponseRedirect(project.get_absolute_url())
    context = {"title": _("What starts the loop of %s") % project.slug, "form": form, "label": _("Save")}
    context["body"] = _(
        "Empty: ANDON_LOOP_AGENT by Andon's runner, or scripts/ralph/ralph.sh. It runs as Andon's own user, with the "
        "variables that ANDON_LOOP_ENV names."
    )
    return _page(request, project, "confirm.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
def requeue(request: HttpRequest, slug: str, key: str) -> HttpResponse:
    """Ask, then open one story again in prd.json."""
    project = _operated(request, slug)
    story = project.stories.filter(key=key).first()
    if story is None:
        raise Missing("not-found", f"{slug} has no story {key[:80]}.")
    back = story.get_absolute_url()
    if request.method == "POST":
        try:
            is_new = editing.requeue(project, key, by=access.actor(request), now=timezone.now())
        except DomainError as refusal:
            messages.error(request, refusal.detail)
        else:
            messages.success(request, (_("%s is open again.") if is_new else _("%s is open already.")) % key)
        return HttpResponseRedirect(back)
    body = _("In prd.json it is set to not passed, without failure, block and retries; nothing else changes.")
    context = {"title": _("Open %s again?") % key, "body": body, "label": _("Open again")}
    return _page(request, project, "confirm.html", {**context, "back": back})


def _operated(request: HttpRequest, slug: str) -> Project:
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    return get_project(slug)


def _refused(request: HttpRequest, project: Project, refusal: DomainError) -> HttpResponse:
    """Go back to the project, whose page says why nothing was done, or that it is still under way."""
    if isinstance(refusal, Unfinished):
        messages.warning(request, refusal.detail)
    else:
        messages.error(request, refusal.detail)
    return HttpResponseRedirect(project.get_absolute_url())


def _page(request: HttpRequest, project: Project, template: str, context: dict[str, Any]) -> HttpResponse:
    back = project.get_absolute_url()
    status = 422 if request.method == "POST" else 200
    response = page(request, template, {"action": request.path, "back": back, "p": project, **context})
    response.status_code = status
    return response


def _stopped_words(status: str, pid: int | None) -> str:
    if pid is None:
        return _("The loop had stopped already.")
    return _("The loop had to be killed.") if status == "killed" else _("The loop has stopped.")
