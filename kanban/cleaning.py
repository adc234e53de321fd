"""Clean up now: an administrator asks, each host's worker removes what retention lets go, and nothing else.

The jobs of retention do the same by themselves, a batch each minute. The rules are asked again for each single thing
at the moment of its removal, so it does not matter what was seen when somebody asked.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime

from django.conf import settings
from django.utils import timezone

from kanban import dispatch, lifecycle, notices, retention
from kanban.models import CleanUp
from kanban.retention import Pruned
from projects import jobs, sizes
from projects import sweeps as projects
from projects.errors import Unavailable
from projects.events import By
from services import orders, queries, supervisor
from services import sweeps as services
from services.models import LOG_FOLDER

# How long whoever asks waits for the end, and how long a clean-up goes on; what is left then goes by itself.
ENDED_WITHIN_S = 5.0
LASTS_S = 60.0
log = logging.getLogger("andon.kanban")


def order(*, by: By, now: datetime) -> list[CleanUp]:
    """Have the worker of each host that ticks clean up now; returns their rows once they are over, at most 5 s later.

    Unavailable `no-worker` when none ticks: nothing is changed then.
    """
    nodes = dispatch.ticking(now)
    if not nodes:
        raise Unavailable("no-worker", "No worker ticks anywhere, so nothing was changed. Start Andon.")
    rows = [lifecycle.ask_clean_up(node, by=by, now=now) for node in nodes]
    for row in rows:
        orders.send(act, row.node, row.pk)
    return queries.awaited(rows, lambda row: row.ended_at is not None, within_s=ENDED_WITHIN_S)


@jobs.job
def act(pk: int) -> None:
    """Run by the worker: carry out one clean-up now."""
    jobs.submit(f"clean up {pk}", carry_out, pk)


def sweep() -> int:
    """Have the open clean-ups of this node carried out: a message was lost, or a worker died. Returns how many."""
    keys = list(CleanUp.objects.filter(node=settings.ANDON_NODE, ended_at=None).values_list("pk", flat=True))
    for pk in keys:
        jobs.submit(f"clean up {pk}", carry_out, pk)
    return len(keys)


def carry_out(pk: int) -> CleanUp | None:
    """Remove all that retention lets go on this node, and say what went; None for one that is over or another node's.

    What cannot be removed is named and stops nothing else.
    """
    row = CleanUp.objects.filter(pk=pk, node=settings.ANDON_NODE, ended_at=None).first()
    if row is None:
        return None
    removed, failed = {"bytes": 0}, []
    left, until = False, time.monotonic() + LASTS_S
    for kind, prune in _kinds(lifecycle.asker(row)).items():
        removed[kind] = 0
        try:
            more = True
            while more and time.monotonic() < until:
                number, size, more = prune()
                removed[kind] += number
                removed["bytes"] += size
            left = left or more
        except Exception:
            log.exception("clean up %s", kind)
            failed.append(kind)
    return lifecycle.finish_clean_up(row, removed, failed=failed, left=left, now=timezone.now())


def _kinds(by: By) -> dict[str, Callable[[], tuple[int, int, bool]]]:
    """Return what removes each kind, a batch at a call: (how many, how many bytes, whether there may be more)."""
    return {
        "workspaces": lambda: _told(retention.prune_workspaces(by=by, now=timezone.now())),
        "logs": lambda: _remove_logs(timezone.now()),
        "processes": lambda: _forget(by, timezone.now()),
        "task_events": lambda: _counted(retention.prune_events(now=timezone.now())),
        "events": lambda: _counted(projects.prune_events(now=timezone.now())),
        "deliveries": lambda: _counted(notices.prune(now=timezone.now())),
    }


def _told(pruned: Pruned) -> tuple[int, int, bool]:
    return len(pruned.gone), pruned.size, pruned.more


def _counted(number: int) -> tuple[int, int, bool]:
    return number, 0, number > 0


def _remove_logs(now: datetime) -> tuple[int, int, bool]:
    size = sizes.of_files(LOG_FOLDER / name for name in services.unnamed_logs(now))
    return services.remove_unnamed(now=now), size, False


def _forget(by: By, now: datetime) -> tuple[int, int, bool]:
    """Forget ended processes with their logs, which are counted with them."""
    done, at_work = retention.prune_logs(by=by, now=now), supervisor.current()
    more = services.forget_removed(at_work, by=by, now=now) if at_work is not None else 0
    services.remove_unnamed(now=now)
    return len(done.gone) + more, done.size, done.more
