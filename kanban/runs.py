"""What the token of a run may do over REST: look at its own task and speak for it, and nothing else. Fails closed."""

import re

from projects.errors import Forbidden

# Under either prefix: the second is rewritten to the first before it comes here.
_OWN_GET = r"/api/kanban/tasks/{task}(/context)?"
_OWN_POST = r"/api/kanban/tasks/{task}/(heartbeat|complete|block|review|comments)"
# What stands beside: its project's services, a task of its own, who it is. Their routes check the rest.
_GETS = frozenset(
    {"/api/me", "/api/managed-processes", "/api/managed-processes/live-block", "/api/managed-processes/hint"}
)
_BY_NAME = re.compile(r"/api/managed-processes/(by-name|log)/[a-z0-9-]{1,64}")
_POSTS = frozenset({"/api/kanban/tasks", "/api/managed-processes/validate"})


def check(run: str, project: str, method: str, path: str) -> None:
    """Refuse (Forbidden) what the run `t_…/3` of a project ("" = of none) may not ask for."""
    task = re.escape(run.partition("/")[0])
    is_service = path.startswith("/api/managed-processes")
    if method in {"GET", "HEAD"}:
        known = path in _GETS or bool(_BY_NAME.fullmatch(path) or re.fullmatch(_OWN_GET.format(task=task), path))
    else:
        known = method == "POST" and (path in _POSTS or bool(re.fullmatch(_OWN_POST.format(task=task), path)))
    # Without a project every project, and every service, would be its own.
    if known and not (is_service and not project):
        return
    raise Forbidden(
        "forbidden",
        "A run may only look at its own task and its project's services, and speak for itself. Services are "
        "declared in $ANDON_SIDECAR.",
    )
