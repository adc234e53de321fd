"""What the routes of this package have in common: who asks and for what, and how a task is answered."""

from dataclasses import dataclass
from typing import Any

import orjson
from django.http import HttpRequest, HttpResponse

from kanban import queries
from kanban.models import Task
from projects.access import Identity

STRANGERS = frozenset({401, 403})
NONSENSE = frozenset({400, 401, 403, 422})
# What a verb on one task may refuse.
REFUSED = frozenset({400, 401, 403, 404, 409, 413, 422})


def identity_of(request: HttpRequest) -> Identity:
    identity: Identity = request.identity  # type: ignore[attr-defined]
    return identity


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose tasks somebody sees and touches: of one project, "" = of all; a run of none keeps to tasks of none."""

    project: str
    run: str

    @property
    def is_bound(self) -> bool:
        return bool(self.run or self.project)

    def has(self, project: str) -> bool:
        return not self.is_bound or project == self.project

    @property
    def run_task(self) -> str:
        """The task that a run speaks for."""
        return self.run.partition("/")[0]


def scope_of(request: HttpRequest) -> Scope:
    who = identity_of(request)
    return Scope(who.project, who.run)


def task_of(request: HttpRequest, task_id: str) -> Task:
    """Return the task that a request is about; Missing when there is none that its sender may see."""
    return queries.get_task(task_id, identity_of(request).project)


def task_answer(task: Task, **beside: Any) -> HttpResponse:
    return json_answer({"task": queries.document(task), **beside})


def json_answer(document: Any, status: int = 200) -> HttpResponse:
    """Answer with a document that needs no validation on its way out: it was built here."""
    return HttpResponse(orjson.dumps(document), content_type="application/json", status=status)
