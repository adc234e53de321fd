"""/services/new/: declare services by a form or by pasting a spec file; checking changes nothing."""

import json
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from projects import access
from projects import queries as projects
from projects.errors import DomainError
from projects.models import Project
from projects.pages import page
from projects.states import Role
from services import acceptance, lifecycle, orders, pages, rules, specs
from services.forms import FileForm, SpecForm, known_slugs
from services.unclaimed import hidden

REFUSED = 422


@dataclass(frozen=True, slots=True)
class Checked:
    """A document that was accepted: its specs as they would be kept, and what was ignored."""

    project: str
    specs: list[str]
    warnings: list[str]


@require_http_methods(["GET", "HEAD", "POST"])
@sensitive_post_parameters("env", "text")
def new(request: HttpRequest) -> HttpResponse:
    """The form and the box; POST checks or declares what one of them holds."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    slugs = known_slugs()
    wanted = request.GET.get("project", "")
    initial = {"project": wanted if wanted in slugs else (slugs[0] if slugs else "")}
    if request.method != "POST":
        return _page(request, slugs, SpecForm(slugs=slugs, initial=initial), FileForm(slugs=slugs, initial=initial))
    is_file = request.POST.get("source") == "file"
    form: SpecForm | FileForm = (FileForm if is_file else SpecForm)(request.POST, slugs=slugs)
    status, checked = REFUSED, None
    if form.is_valid():
        project = projects.get_project(form.cleaned_data["project"])
        found = _judge(form, project)
        is_meant = request.POST.get("act") == "declare"
        if isinstance(found, specs.Invalid):
            form.refuse(found.reason)
            if is_meant:
                lifecycle.reject(project, found.reason, by=access.actor(request), now=timezone.now())
        elif is_meant:
            try:
                return _declare(request, project, found)
            except DomainError as refusal:
                form.refuse(refusal.detail)
                status = refusal.status
        else:
            texts = [json.dumps(hidden(spec), ensure_ascii=False, indent=2) for spec in found.specs]
            status, checked = 200, Checked(project.slug, texts, found.warnings)
    initial = {"project": request.POST.get("project", "")}
    other = SpecForm(slugs=slugs, initial=initial) if is_file else FileForm(slugs=slugs, initial=initial)
    one, file = (other, form) if is_file else (form, other)
    response = _page(request, slugs, one, file, checked=checked, refused=form if form.errors else None)
    response.status_code = status
    return response


def _judge(form: SpecForm | FileForm, project: Project) -> specs.Accepted | specs.Invalid:
    limits, system = rules.limits(project), rules.system()
    if isinstance(form, SpecForm):
        return specs.validate_document(form.document(), limits, system)
    # A browser ends lines by CRLF, which would count against the size.
    return acceptance.of_known_length(specs.validate(form.cleaned_data["text"].replace("\r\n", "\n"), limits, system))


def _declare(request: HttpRequest, project: Project, accepted: specs.Accepted) -> HttpResponse:
    by, agent, wi = access.actor(request), accepted.written_by or "", accepted.wi_id or ""
    with acceptance.refusals_told(project, wi=wi, by=by):
        placed = orders.declare(project, accepted.specs, agent=agent, wi=wi, by=by)
    names = ", ".join(row.name for row in placed.rows)
    messages.success(request, (_("%s is declared.") if len(placed.rows) == 1 else _("%s are declared.")) % names)
    for warning in [*accepted.warnings, *placed.warnings]:
        messages.warning(request, warning)
    if len(placed.rows) == 1:
        return HttpResponseRedirect(placed.rows[0].get_absolute_url())
    return HttpResponseRedirect(pages.list_url(project=project.slug))


def _page(request: HttpRequest, slugs: list[str], form: Any, file: Any, **context: Any) -> HttpResponse:
    shown = {
        "slugs": slugs,
        "form": form,
        "file": file,
        "executables": sorted(specs.EXECUTABLES | settings.ANDON_EXECUTABLES),
        "example": json.dumps(dict(specs.EXAMPLE), indent=2),
    }
    response = page(request, "services/new.html", {**shown, **context})
    response["Cache-Control"] = "no-store"
    return response
