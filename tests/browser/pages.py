"""Every page of Andon, as a browser walks it: one line for a page that is added.

`tests/contracts/test_pages.py` compares this list with the URLs: a page that is in neither list fails it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Walk:
    """One page: the name of its URL, an address, and what is clicked to open each of its dialogs.

    The address may hold what only a running Andon knows, in braces: the facts of tests/browser/furnished.py.
    """

    name: str
    path: str
    dialogs: tuple[str, ...] = ()
    signed_in: bool = True

    def __str__(self) -> str:
        return self.path.partition("?")[0]


PAGES = (
    Walk("home", "/"),
    Walk("search", "/search/?q=green"),
    Walk("search", "/search/"),
    Walk("help", "/help/"),
    Walk("projects", "/projects/"),
    Walk("project", "/projects/greenhouse/"),
    Walk("project", "/projects/birdsong/", ("a[href$='/start/']", "a[href$='/budget/']", "a[href$='/loop/']")),
    Walk("story", "/projects/greenhouse/stories/US-001/"),
    Walk("iterations", "/projects/greenhouse/iterations/"),
    Walk("iteration", "/projects/greenhouse/iterations/1/"),
    Walk("loop-start", "/projects/birdsong/start/"),
    Walk("loop-stop", "/projects/greenhouse/stop/"),
    Walk("loop-budget", "/projects/birdsong/budget/"),
    Walk("loop-configure", "/projects/birdsong/loop/"),
    Walk("story-requeue", "/projects/birdsong/stories/US-001/requeue/"),
    Walk("rollback", "/projects/greenhouse/rollback/", ("main a[data-dialog]",)),
    Walk("rollback", "/projects/birdsong/rollback/"),
    Walk("rollback-done", "/projects/birdsong/rollback/{rollback}/"),
    Walk("services", "/services/"),
    Walk("services", "/services/?q=nothing-like-it"),
    Walk("declare-service", "/services/new/?project=greenhouse"),
    Walk("service", "/services/greenhouse/web/", ("a[href*='/stop/']", "a[href*='/kill/']")),
    Walk("service-verb", "/services/greenhouse/web/stop/"),
    Walk("process", "/services/~/{process}/"),
    Walk("kanban", "/kanban/"),
    Walk("kanban", "/kanban/?lanes=1&archived=1&switches=1"),
    Walk("task-list", "/kanban/list/"),
    Walk("profiles", "/kanban/profiles/"),
    Walk("profile-pause", "/kanban/profiles/demo/pause/"),
    Walk("task-new", "/kanban/tasks/new/"),
    Walk("task", "/kanban/tasks/{task}/", ("main a[data-dialog]",)),
    Walk("task", "/kanban/tasks/{blocked}/", ("a[href*='/unblock/']",)),
    Walk("task-move", "/kanban/tasks/{blocked}/move/"),
    Walk("task-verb", "/kanban/tasks/{blocked}/complete/"),
    Walk("run", "/runs/{run}/"),
    Walk("history", "/projects/greenhouse/history/"),
    Walk("sessions", "/sessions/"),
    Walk("session", "/sessions/{session}/", ("a[href$='/delete/']",)),
    Walk("delete-session", "/sessions/{session}/delete/"),
    Walk("audit", "/audit/"),
    Walk("recover", "/audit/recover/"),
    Walk("costs", "/costs/?days=90"),
    Walk("events", "/events/"),
    Walk("event", "/events/{event}/"),
    Walk("system", "/system/", ("a[href$='/clean-up/']",)),
    Walk("clean-up", "/system/clean-up/"),
    Walk("settings", "/settings/", ("a[href$='/revoke/']",)),
    Walk("notices", "/settings/notices/"),
    Walk("notice", "/settings/notices/{notice}/"),
    Walk("notice-delete", "/settings/notices/{notice}/delete/"),
    Walk("set-password", "/settings/password/"),
    Walk("revoke-token", "/settings/tokens/{token}/revoke/"),
    Walk("login", "/login/", signed_in=False),
    Walk("sign-in-link", "/login/link/used-up/", signed_in=False),
    Walk("admin:index", "/admin/"),
    Walk("admin:changelist", "/admin/services/managedprocess/"),
    Walk("admin:change", "/admin/services/managedprocess/{process}/change/"),
)

# No page of ours stands there, each with its reason.
ELSEWHERE = {
    "rescan": "answers a POST with a redirect",
    "create-token": "answers a POST with the page of settings",
    "logout": "answers a POST with a redirect",
    "rollback-confirm": "the question of /rollback/, which opens it as a dialog",
    "rollback-force": "the question beside a rollback that hangs; templates/confirm.html as the others",
    "discard-sidecar": "the question beside an unclaimed file; templates/confirm.html as the others",
    "process-verb": "the view and template of service-verb",
    "iteration-log": "a download",
    "service-log": "a download",
    "process-log": "a download",
    "process-log-stream": "a stream",
    "costs-export": "a download",
    "task-export": "a download",
    "profile-resume": "answers a POST with a redirect",
    "dispatch-pause": "answers a POST with a redirect",
    "dispatch-resume": "answers a POST with a redirect",
    "kanban-nudge": "answers a POST with a redirect",
    "kanban-sample": "answers a POST with a redirect",
    "kanban-bulk": "the board's own bar, and a page of results built like templates/kanban/ask.html",
    "kanban-undo": "answers a POST with a redirect",
    "task-comment": "answers a POST with a redirect",
    "task-link": "answers a POST with a redirect",
    "task-unlink": "answers a POST with a redirect",
    "notice-verb": "answers a POST with a redirect",
    "notice-again": "answers a POST with a redirect",
    "healthz": "plain text",
    "readyz": "plain text",
    "metrics": "plain text",
    "favicon": "an icon",
}
