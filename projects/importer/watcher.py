"""Wake the importer when a project's files change: one watcher a worker, never recursive.

Twenty small projects took 12,701 inotify watches recursively; watched here are each root, each project, its
Ralph folder and that one's parent, `logs/` and `.ralph/`.
"""

import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

from django.conf import settings
from django.utils import timezone
from watchfiles import watch

from projects import importer, jobs, ralph

DEBOUNCE_MS = 200
STEP_MS = 40
TIMEOUT_MS = 250
# Without watches the rescan is all there is, so it comes often, but never takes more than a fifth of a core.
POLL_S = 1.0
POLL_SHARE = 5
# Watches may be had again.
RETRY_S = 60.0
COMPARE_S = 30.0
log = logging.getLogger("andon.watcher")


class Watcher:
    """A thread that watches and submits imports to the second pool; `mode` is "inotify" or "polling".

    `beside` names directories to watch that are no project's; `noticed` hears of every path that changed.
    """

    def __init__(
        self, *, beside: Callable[[], set[str]] = set, noticed: Callable[[str], object] = lambda path: None
    ) -> None:
        self._beside, self._noticed = beside, noticed
        self.mode = ""
        self._stop = threading.Event()
        self._again = threading.Event()
        self._watched: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._again.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            self._again.clear()
            # Asked after the clearing, which may have swallowed the call of stop().
            if self._stop.is_set():
                return
            try:
                self._watched = self._wanted()
                self._watch()
            except FileNotFoundError:
                # A directory went away between the look and the watch.
                self._stop.wait(STEP_MS / 1000)
            except Exception as error:  # noqa: BLE001 (whatever the kernel refuses, there is the poll)
                if self.mode != "polling":
                    log.warning("cannot watch files (%s); looking at them each second instead", error)
                self.mode = "polling"
                self._poll()

    def _watch(self) -> None:
        stands = False
        compared = time.monotonic()
        for changes in watch(
            *sorted(self._watched),
            recursive=False,
            step=STEP_MS,
            debounce=DEBOUNCE_MS,
            stop_event=self._again,
            rust_timeout=TIMEOUT_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            watch_filter=None,
        ):
            stale = self._handle({path for _, path in changes})
            if not stands:
                # What changed while no watch stood is found by looking once, now that one does.
                stands = stale = True
                self.mode = "inotify"
                jobs.submit("rescan", _rescan)
            if stale or time.monotonic() - compared >= COMPARE_S:
                compared = time.monotonic()
                if self._wanted() != self._watched:
                    self._again.set()

    def _handle(self, paths: set[str]) -> bool:
        """Submit the imports that changed paths ask for; says whether the set of watches may be out of date."""
        # Of nested roots the innermost owns the project.
        roots = sorted((str(root) for root in settings.ANDON_WORKSPACE), key=len, reverse=True)
        stale = False
        for path in paths:
            self._noticed(path)
            root = next((root for root in roots if path.startswith(root + "/")), None)
            if root is None:
                continue
            name, _, inside = path[len(root) + 1 :].partition("/")
            if inside:
                project = f"{root}/{name}"
                jobs.submit(f"import {project}", _import, project)
            if not inside or path.endswith(("/prd.json", "/.git")):
                stale = True
                jobs.submit("rescan", _rescan)
            stale = stale or (os.path.isdir(path) != (path in self._watched))  # noqa: PTH112 (Path raises)
        return stale

    def _wanted(self) -> set[str]:
        return watched_paths() | self._beside()

    def _poll(self) -> None:
        until = time.monotonic() + RETRY_S
        while not self._stop.is_set() and time.monotonic() < until:
            started = time.monotonic()
            if looking := jobs.submit("rescan", _rescan):
                wait([looking])
            self._stop.wait(max(POLL_S, POLL_SHARE * (time.monotonic() - started)))


def watched_paths() -> set[str]:
    """Return the directories to watch, those that exist; of one that is no project yet, where it may become one."""
    wanted: set[str] = set()
    for root in settings.ANDON_WORKSPACE:
        if not _can_watch(Path(os.path.realpath(root))):
            continue
        wanted.add(str(root))
        for directory in importer.directories(root):
            prd = ralph.find_prd(directory)
            places = [prd] if prd else [Path(place) for place in ralph.PRD_PLACES]
            folders = {directory, directory / ".ralph"}
            for place in places:
                folder = directory / place.parent
                folders.update({folder, folder.parent, folder / "logs", folder / ".ralph"})
            wanted.update(str(path) for path in folders if path.is_relative_to(directory) and _can_watch(path))
    return wanted


def _can_watch(path: Path) -> bool:
    """Say whether a path is a directory, not a link to one, and may be watched.

    To let watchfiles ignore what may not be would silence "out of watches" too.
    """
    try:
        return stat.S_ISDIR(path.lstat().st_mode) and os.access(path, os.R_OK)
    except OSError:
        return False


def _import(path: str) -> bool:
    return importer.import_project(path, now=timezone.now())


def _rescan() -> importer.Counts:
    return importer.rescan(now=timezone.now())
