"""The worker of one host: holds the node's lease, watches files and processes, runs jobs until told to stop."""

import contextlib
import fcntl
import gc
import logging
import os
import signal
import socket
from typing import Any

from django.conf import settings
from django.utils import timezone
from django.utils.module_loading import autodiscover_modules

from projects import intake, jobs, keeping, undoing
from projects import sweeps as scans
from projects.errors import Conflict
from projects.events import By
from projects.importer.watcher import Watcher
from services import lifecycle, probes, processes, strangers, supervisor, sweeps
from services.models import WorkerHost

BY = By("andon", "sweep")
log = logging.getLogger("andon.worker")


class Worker:
    """One worker; `run` returns when the process was told to stop."""

    def __init__(self) -> None:
        self._lock = -1
        self._watcher = Watcher(beside=intake.places.directories, noticed=scans.notice)
        self.host: WorkerHost | None = None

    def run(self) -> None:
        """Take the home's lock and the node's lease and run jobs; Conflict when another worker has either."""
        self._take_lock()
        identity = processes.identify(os.getpid(), settings.ANDON_NODE)
        if identity is None:
            raise Conflict("no-identity", "This process cannot read its own entry in /proc.")
        self.host = lifecycle.enlist(
            identity, host_name=socket.gethostname(), version=settings.VERSION, by=BY, now=timezone.now()
        )
        autodiscover_modules("tasks")
        jobs.every(seconds=5)(self.beat)
        self._watcher.start()
        kernel, prober = processes.Linux(settings.ANDON_NODE), probes.Prober()
        at_work = supervisor.Supervisor(kernel, prober, born_at=timezone.now())
        supervisor.install(at_work)
        strangers.install(strangers.Strangers(kernel, born_at=timezone.now()))
        lifecycle.on_loop.append(sweeps.import_loop)
        undoing.tidy()
        log.info("journals: %s", keeping.begin(now=timezone.now()))
        kernel.start()
        prober.start()
        try:
            log.info("adopted: %s", sweeps.adopt(at_work, now=timezone.now()))
            # As in the web process: what is loaded by now stays, and no collection has to walk it again.
            gc.freeze()
            jobs.consumer().run()
        finally:
            supervisor.install(None)
            strangers.install(None)
            self._watcher.stop()
            prober.stop()
            kernel.stop()
            jobs.pool.shutdown(wait=False, cancel_futures=True)
            with contextlib.suppress(Conflict):
                lifecycle.leave(self.host, by=BY, now=timezone.now())

    def beat(self) -> None:
        """Tell the lease row that this worker ticks, and what its jobs last did."""
        if self.host is None:
            return
        try:
            lifecycle.beat(self.host, jobs=report(), watching=self._watcher.mode, by=BY, now=timezone.now())
        except Conflict as lost:
            log.warning("%s Stopping.", lost.detail)
            os.kill(os.getpid(), signal.SIGTERM)

    def _take_lock(self) -> None:
        self._lock = os.open(settings.ANDON_HOME / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("home-taken", f"Another worker runs on {settings.ANDON_HOME}. Stop it first.") from None


def report() -> dict[str, Any]:
    """Return what each tick last did: rhythm, milliseconds taken, result, error, times skipped."""
    return {
        tick.name: {
            "seconds": tick.seconds,
            "took_ms": round(tick.last_took_s * 1000, 1),
            "result": tick.last_result,
            "error": tick.last_error,
            "skipped": tick.skipped,
        }
        for tick in jobs.ticks.values()
    }
