"""For machines: is it up, is it ready, and its numbers."""

from collections.abc import Iterator

from django.conf import settings
from django.contrib.staticfiles import finders
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import FileResponse, HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from config import queries
from projects.access import Identity
from projects.errors import Forbidden

_migrated = False


@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """200 when this process answers."""
    return HttpResponse("ok\n", content_type="text/plain")


@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """200 when the database is migrated and this host's worker ticks; no details, since anybody may ask."""
    try:
        ready = _is_migrated() and (settings.ANDON_WEB_ONLY or queries.is_ticking(timezone.now()))
    except DatabaseError:
        ready = False
    return HttpResponse("ready\n" if ready else "not ready\n", status=200 if ready else 503, content_type="text/plain")


class _Numbers:
    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, help_text, labels, rows in queries.numbers(timezone.now()):
            family = GaugeMetricFamily(f"andon_{name}", help_text, labels=labels)
            for values, number in rows:
                family.add_metric(values, number)
            yield family


@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus text: projects, stories, loops, workers, the event log, open sockets."""
    identity: Identity = request.identity  # type: ignore[attr-defined]  # set by the door
    if identity.project or identity.run:
        raise Forbidden("forbidden", "These are the numbers of all projects; this token is bound to one.")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers())
    return HttpResponse(generate_latest(registry), content_type="text/plain; version=0.0.4; charset=utf-8")


def favicon(request: HttpRequest) -> FileResponse:
    return FileResponse(open(str(finders.find("favicon.ico")), "rb"), content_type="image/x-icon")  # noqa: PTH123


def _is_migrated() -> bool:
    """Say whether the schema is this version's; once it was, it stays so for this process."""
    global _migrated  # noqa: PLW0603
    if not _migrated:
        executor = MigrationExecutor(connection)
        _migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _migrated
