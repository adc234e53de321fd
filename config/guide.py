"""What /help/ says of the pages and of every state."""

from typing import Any, NamedTuple

from django.utils.translation import gettext_lazy as _

from projects import timelines
from projects.states import Role


class Sign(NamedTuple):
    """A state as its badge shows it, and what it means; `label` where its word is not its sign's own."""

    status: str
    meaning: Any
    label: Any = ""


TURNS = {
    "submitted": _("It was asked, and nobody has begun to work on it."),
    "worker_started": _("Somebody has taken it up."),
    "assistant_started": _("The answer is being written."),
    "completed": _("It was answered."),
    "interrupted": _("Whoever worked on it ended before the answer; what was asked is kept."),
    "unknown": _("Its lines do not say how far it came."),
}

LEGEND: list[tuple[Any, list[Sign]]] = [
    (
        _("Projects"),
        [
            Sign("running", _("Its loop runs.")),
            Sign("idle", _("No loop runs and stories are open.")),
            Sign("blocked", _("A story waits for a person.")),
            Sign("complete", _("Every story is passed.")),
            Sign("failed", _("A story failed and none is left to try.")),
            Sign("error", _("Its prd.json cannot be read; what is shown is the last good version.")),
            Sign("missing", _("Its directory is gone.")),
            Sign("stalled", _("Its loop runs but has written nothing for three times its usual iteration.")),
        ],
    ),
    (
        _("Stories"),
        [
            Sign("pending", _("Nobody has begun it.")),
            Sign("in_progress", _("The loop works on it.")),
            Sign("passed", _("Its acceptance criteria are met.")),
            Sign("failed", _("It was given up; its page says why.")),
            Sign("blocked", _("It waits for a person.")),
        ],
    ),
    (
        _("Services, loops and task workers"),
        [
            Sign("starting", _("Started, and not yet seen healthy.")),
            Sign("running", _("A loop or a task worker that lives.")),
            Sign("healthy", _("Its health check succeeds.")),
            Sign("unhealthy", _("It lives, but its health check fails.")),
            Sign("restarting", _("It is stopped and then started again.")),
            Sign("backoff", _("It ended by itself and is tried again after a pause.")),
            Sign("stopping", _("It was asked to end; what is left is killed when its grace is over.")),
            Sign("exited", _("It has ended and nothing of it is left.")),
            Sign("failed", _("It ended with an error and is not tried again.")),
            Sign("crash_loop", _("It ended more than five times within ten minutes; a person has to look.")),
            Sign("expired", _("Its time to live was over.")),
            Sign("lost", _("Nobody saw how it ended: the machine was started anew, or it was written off.")),
        ],
    ),
    (
        _("Tasks"),
        [
            Sign("triage", _("Somebody has to say first what it is about.")),
            Sign("todo", _("It waits for another task, or a person holds it.")),
            Sign("ready", _("It can be claimed.")),
            Sign("running", _("A worker has claimed it.")),
            Sign("review", _("A person is asked to approve what was done.")),
            Sign("blocked", _("A person has to answer, or a breaker is open.")),
            Sign("breaker", _("It failed so often that nothing more is tried until a person retries it.")),
            Sign("waiting", _("A quota was met; it goes on by itself.")),
            Sign("done", _("It is done.")),
            Sign("archived", _("Put away; only shown when asked for.")),
        ],
    ),
    (
        _("Attempts at a task"),
        [
            Sign("completed", _("Its worker says that the task is done.")),
            Sign("review", _("Its worker asks a person to look at it."), _("In review")),
            Sign("crashed", _("Its worker ended with an error, or nobody saw how.")),
            Sign("timed_out", _("It took longer than it may, and was ended.")),
            Sign("rate_limited", _("Its agent met a quota; the task is tried again by itself.")),
            Sign("protocol_violation", _("Its worker ended in order and never said what came of it.")),
            Sign("released", _("It was taken back, by a person or for another reason than its work.")),
            Sign("superseded", _("Another attempt has taken its place.")),
            Sign("spawn_failed", _("Its worker could not be started.")),
        ],
    ),
    (
        _("Turns of a session"),
        [Sign(timelines.STATES[state][0], meaning, timelines.STATES[state][1]) for state, meaning in TURNS.items()],
    ),
    (
        _("Rollbacks"),
        [
            Sign("asked", _("Somebody asked for it; the worker has not begun.")),
            Sign("applying", _("The commit is being undone.")),
            Sign("done", _("A new commit has undone it and its story is open again.")),
            Sign("refused", _("Something was in the way; nothing was changed.")),
            Sign("undone", _("It failed half-way and everything was put back.")),
        ],
    ),
    (
        _("Stops of a loop"),
        [
            Sign("asked", _("Somebody asked for it; the worker has not begun.")),
            Sign("ending", _("The loop was asked to end.")),
            Sign("stopped", _("It has ended by itself.")),
            Sign("killed", _("It did not end in time and was killed.")),
            Sign("refused", _("It could not be stopped; the reason stands beside it.")),
        ],
    ),
    (
        _("Workers"),
        [
            Sign("ticking", _("It has told of itself within 15 seconds.")),
            Sign("silent", _("It has not. Nothing is watched, started or stopped on that machine.")),
            Sign("stopped", _("It said goodbye; nothing is expected of it.")),
        ],
    ),
]

PAGES: list[tuple[str, Any, Any]] = [
    ("/", _("Home"), _("What needs you now, what runs, what it costs, what happened last.")),
    ("/projects/", _("Projects"), _("Every project with its stories and its loop: start, stop, budget, roll back.")),
    ("/kanban/", _("Board"), _("The work to be done: what waits, what runs, what needs a person; who does it.")),
    ("/services/", _("Services"), _("What agents need while they work: health, ports, logs, start, stop, extend.")),
    ("/sessions/", _("Sessions"), _("What agents were asked, turn by turn, and what became of it.")),
    ("/audit/", _("Audit"), _("What is odd in the sessions' files and what to do; turns that can be recovered.")),
    ("/costs/", _("Costs"), _("What was spent by day, project, story and model; what is unknown is never 0.")),
    ("/events/", _("Events"), _("Everything that happened, newest first, with who did it.")),
    ("/system/", _("System"), _("The workers and what they run, what is kept for how long, the database, the disk.")),
    ("/settings/", _("Settings"), _("Theme, density, time zone, shortcuts, password; for administrators tokens.")),
    (
        "/settings/notices/",
        _("Webhooks and e-mail"),
        _("Who is told of what by itself, with a test and what was sent."),
    ),
    ("/search/", _("Search"), _("Projects, stories, tasks, sessions, services and events by any word of theirs.")),
    ("/api/docs", _("API"), _("Everything that the pages do, for programs; a token is made in the settings.")),
]
# Not for everybody who may look.
OPERATORS_PAGES = frozenset({"/settings/notices/"})


def pages(role: Role) -> list[tuple[str, Any, Any]]:
    """Return the pages that somebody of a role may open."""
    return [each for each in PAGES if each[0] not in OPERATORS_PAGES or role.includes(Role.OPERATOR)]
