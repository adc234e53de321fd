"""Level-triggered repairs: each compares what is with what should be, and returns its counts."""

import logging
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Exists, Q, Subquery
from django.utils import timezone

from projects import history, importer, intake, jobs, queries, registries
from projects.events import SWEEP, record, writing
from projects.models import Event, EventFloor, Project
from services import processes
from services.processes import Identity, Verdict

EVENTS_KEPT = timedelta(days=90)
EVENTS_AT_MOST = 2_000_000
PRUNE_BATCH = 5_000
log = logging.getLogger("andon.sweeps")


def rescan(*, now: datetime) -> dict[str, int]:
    """Compare all projects with their files."""
    return importer.rescan(now=now)._asdict()


def look_again() -> bool:
    """Have the second pool compare all projects with their files, one look at a time; False when one was under way.

    A first import takes seconds, and the threads of the jobs are also those that tick.
    """
    return jobs.submit("rescan", _rescan) is not None


def read_journals() -> bool:
    """Have the second pool compare all journals with what was read of them; False when one look was under way."""
    return jobs.submit("journals", _read_journals) is not None


def judge_registries() -> bool:
    """Have the second pool judge who of the registered loops runs; False when one look was under way."""
    return jobs.submit("registries", _judge_registries) is not None


def notice(path: str) -> None:
    """Have the second pool take in a file that has changed, when it is a journal or a registry."""
    intake.notice(path)
    if path.endswith(f"/{history.REGISTRY}"):
        judge_registries()


def detect_ended(*, now: datetime) -> int:
    """Look at the process of each running loop and have those imported whose process is gone."""
    ended = 0
    rows = Project.objects.filter(node=settings.ANDON_NODE, running=True)
    for path, pid, ticks, boot in rows.values_list("path", "pid", "start_ticks", "boot_id"):
        identity = Identity(settings.ANDON_NODE, boot, pid or 0, ticks or 0)
        if processes.verdict(identity, settings.ANDON_NODE) is Verdict.GONE:
            ended += 1
            jobs.submit(f"import {path}", _import, path, now)
    return ended


def find_stalled(*, now: datetime) -> int:
    """Mark loops that have written nothing for three times their median iteration; records loop.stalled once."""
    stalled = 0
    for project in queries.known().filter(running=True, stalled=False, node=settings.ANDON_NODE):
        try:
            stalled += queries.is_stalled(project, now) and _stall(project, now)
        except Exception:
            log.exception("whether %s is stalled cannot be told", project.slug)
    return stalled


def _stall(project: Project, now: datetime) -> int:
    with writing():
        if not Project.objects.filter(pk=project.pk, stalled=False, running=True).update(stalled=True):
            return 0
        quiet = int((now - (queries.quiet_since(project) or now)).total_seconds())
        record("loop.stalled", project.subject, by=SWEEP, now=now, project=project.slug, quiet_s=quiet)
    return 1


def prune_events(*, now: datetime) -> int:
    """Delete the oldest events, those over 90 days or beyond two million; always a prefix of the log, in batches."""
    oldest = Event.objects.order_by("id").values_list("id", flat=True).first()
    newest = Event.objects.order_by("-id").values_list("id", flat=True).first()
    if oldest is None or newest is None:
        return 0
    batch = Event.objects.order_by("id").values_list("id", "at")[:PRUNE_BATCH]
    through = 0
    for number, at in batch:
        if at > now - EVENTS_KEPT and number > newest - EVENTS_AT_MOST:
            break
        through = number
    if not through:
        return 0
    with writing():
        EventFloor.objects.get_or_create(id=1)
        # Of two hosts that prune at once the floor keeps the higher.
        EventFloor.objects.filter(id=1, pruned_through__lt=through).update(pruned_through=through)
        deleted, _ = Event.objects.filter(id__lte=through).delete()
    return deleted


def is_old(now: datetime) -> Q:
    """Return the condition on the events that `prune_events` deletes, batch after batch."""
    rows = Event.objects.order_by("id").values("id")
    newest = Event.objects.order_by("-id").values("id")[:1]
    first_kept = rows.filter(at__gt=now - EVENTS_KEPT, id__gt=Subquery(newest) - EVENTS_AT_MOST)[:1]
    return Q(id__lt=Subquery(first_kept)) | Q(~Exists(first_kept))


def _import(path: str, now: datetime) -> bool:
    return importer.import_project(path, now=now)


def _read_journals() -> dict[str, int]:
    return intake.rescan(now=timezone.now())._asdict()


def _judge_registries() -> int:
    return registries.sweep(now=timezone.now())


def _rescan() -> dict[str, int]:
    return rescan(now=timezone.now())
