"""Bring one observation into the database: rows and events in one transaction, nothing written when nothing is new."""

import json
import os
from datetime import datetime, timedelta
from typing import Any

from projects import ralph
from projects.events import SWEEP, By, record, writing
from projects.importer import costs
from projects.importer.observe import Log, Observation, written_order
from projects.models import Iteration, LoopStop, Project, Story
from projects.queries import CLOSED, current_row, shown_stories
from projects.states import Via

ACTIVITY_TOLD_EVERY = timedelta(seconds=60)
KEPT_DURATIONS = 10
# Longer than that between two logs is a loop that slept, not an iteration.
LONGEST_ITERATION_S = 6 * 3600
# A process's start is known to the second.
CLOCK_SLACK = timedelta(seconds=1)
ITERATION_FACTS = ("story_key", "started_at", "size", "written_at", "ended_at")
# The supervisor's and the people's (lifecycle.running).
WRITTEN_BY_OTHERS = frozenset({"loop_process", "loop_agent", "loop_command"})
STORY_EVENTS = {"passed": "story.passed", "failed": "story.failed", "blocked": "story.blocked"}


class Absorption:
    """One transaction's worth of news about one project."""

    def __init__(self, project: Project, seen: Observation, *, now: datetime) -> None:
        self.project = project
        self.seen = seen
        self.now = now
        self.is_new = project.pk is None
        self.was_running = project.running
        self.changed: list[str] = []
        self.told_otherwise = False

    def run(self) -> bool:
        """Write what is new; says whether anything was told. Records the events of spec projects.md 2."""
        with writing():
            if self.is_new:
                self.project.save()
            self._files()
            self._stories()
            self._loop()
            self._iterations()
            self._costs()
            self._activity()
            told = self._tell()
            if told or self.seen.fingerprints != self.project.fingerprints:
                self.project.fingerprints = self.seen.fingerprints
                self.project.revision += bool(told)
                self._save()
        return told

    def _save(self) -> None:
        """Write the row, but not what others write there: it may have changed since the row was read."""
        columns = Project._meta.concrete_fields  # noqa: SLF001 (its public name)
        fields = {column.attname for column in columns if not column.primary_key}
        self.project.save(update_fields=fields - self.project.get_deferred_fields() - WRITTEN_BY_OTHERS)

    def tell(self, kind: str, subject: str, *, by: By = SWEEP, **payload: Any) -> None:
        self.told_otherwise = True
        record(kind, subject, by=by, now=self.now, project=self.project.slug, **payload)

    def _files(self) -> None:
        project, seen = self.project, self.seen
        if project.missing_since is not None:
            project.missing_since = None
            self.changed.append("found")
        if project.ralph != seen.is_ralph or project.prd_path != seen.prd_path:
            project.ralph, project.prd_path = seen.is_ralph, seen.prd_path
            self.changed.append("prd")
        if seen.error:
            if project.error != seen.error[:500]:
                project.error = seen.error[:500]
                project.stale_since = project.stale_since or self.now
                if not self.is_new:
                    self.tell("project.error", project.subject, error=project.error)
        elif project.error and (seen.error == "" or not seen.is_ralph):
            project.error, project.stale_since = "", None
            self.changed.append("prd")
        if seen.progress_changed:
            self.changed.append("progress")

    def _stories(self) -> None:
        project, document = self.project, self.seen.document
        if not self.seen.is_ralph:
            self._count(())
            project.warnings = _slug_warnings(project)
        if document is None:
            return
        facts = {
            "title": document.project,
            "branch": document.branch_name[:255],
            "description": document.description,
            "warnings": [*_slug_warnings(project), *document.warnings, *costs.warnings(self.seen.fingerprints)],
        }
        if any(getattr(project, name) != value for name, value in facts.items()):
            self.changed.append("prd")
        for name, value in facts.items():
            setattr(project, name, value)
        # As ASCII text: PostgreSQL's jsonb refuses NUL and lone surrogates, which agents do write.
        project.document = json.dumps(document.raw, separators=(",", ":"))
        self._count(document.stories)

    def _count(self, stories: tuple[ralph.Story, ...]) -> None:
        if stories or self.project.total:
            self._replace_stories(stories)
        states = [story.state.value for story in stories]
        self.project.total = len(states)
        for name in ("passed", "failed", "blocked", "in_progress"):
            setattr(self.project, name, states.count(name))

    def _replace_stories(self, stories: tuple[ralph.Story, ...]) -> None:
        before = {} if self.is_new else {story.key: story for story in self.project.stories.all()}
        fresh, edited, shown = [], [], []
        touched: set[str] = set()
        for story in stories:
            row = _story_row(story)
            old = before.pop(story.id, None)
            shown.append(old or Story(project=self.project, key=story.id, **row))
            subject = f"story:{self.project.slug}/{story.id}"
            if old is None:
                fresh.append(shown[-1])
                if not self.is_new:
                    self.tell("story.added", subject, title=story.title, state=row["state"])
                continue
            news = {name: value for name, value in row.items() if getattr(old, name) != value}
            if news:
                self._tell_story(old, row, subject)
                for name, value in news.items():
                    setattr(old, name, value)
                edited.append(old)
                touched.update(news)
        if before:
            Story.objects.filter(pk__in=[gone.pk for gone in before.values()]).delete()
            for gone in before.values():
                self.tell("story.removed", f"story:{self.project.slug}/{gone.key}", title=gone.title)
        Story.objects.bulk_create(fresh)
        if edited:
            Story.objects.bulk_update(edited, sorted(touched), batch_size=50)
        self.project.shown_stories = shown_stories(shown)

    def _tell_story(self, old: Story, row: dict[str, Any], subject: str) -> None:
        state = row["state"]
        if old.state == state:
            self.changed.append("stories")
        elif state in CLOSED:
            reason = row["failure_reason"] or None if state != "passed" else None
            self.tell(STORY_EVENTS[state], subject, title=row["title"], was=old.state, reason=reason)
        elif old.state in CLOSED:
            self.tell("story.reopened", subject, title=row["title"], was=old.state)
        else:
            self.changed.append("stories")

    def _loop(self) -> None:
        project, loop = self.project, self.seen.loop
        same = loop is not None and (loop.pid, loop.start_ticks) == (project.pid, project.start_ticks)
        if self.was_running and not same:
            project.running, project.stalled = False, False
            self._tell_ending(LoopStop.of_process(project))
        if loop is None:
            project.pid = project.start_ticks = None
            return
        if not (self.was_running and same):
            project.running, project.ours = True, loop.ours
            project.pid, project.start_ticks, project.boot_id = loop.pid, loop.start_ticks, loop.boot_id
            project.loop_started_at = loop.started_at
            started = project.loop_process if project.loop_process.get("pid") == loop.pid else {}
            self.tell("loop.started", project.subject, by=_starter(started), pid=loop.pid, ours=loop.ours)

    def _tell_ending(self, stop: LoopStop | None) -> None:
        """Tell that the loop has ended: who stopped it, else how and why it ended by itself."""
        project, seen, known = self.project, self.seen, self.project.loop_process
        ended = known if known.get("ended") and known.get("pid") == project.pid else {}
        if ended:
            # By its pid file it was seen with the second of its start alone; it is not to be told once more.
            project.loop_started_at = datetime.fromisoformat(ended["started_at"])
        code = ended.get("exit_code")
        if project.total > 0 and project.passed == project.total:
            kind = "completed"
        elif stop is not None or ended.get("cause") == "user":
            kind = "stopped"
        elif ended:
            # Without a code, which nobody could see, the runner's own record tells.
            is_orderly = code == 0 or (code is None and seen.ending)
            kind = "stopped" if is_orderly else "crashed"
        else:
            kind = "crashed" if seen.pid_file and seen.loop is None else "stopped"
        self.tell(
            f"loop.{kind}",
            project.subject,
            by=SWEEP if stop is None else By(stop.asked_by, Via(stop.asked_via), stop.asked_from),
            pid=project.pid,
            reason=seen.ending or None,
            exit_code=code,
            killed=(stop is not None and stop.was_killed(self.now)) or None,
        )

    def _iterations(self) -> None:
        project, logs = self.project, self.seen.logs
        if logs is None and self.was_running == project.running:
            return
        rows = {row.number: row for row in project.iterations.all()} if not self.is_new else {}
        if logs is None:
            logs = [Log(row.number, row.size, row.written_at) for row in rows.values()]
        newest = max(logs, key=written_order, default=None)
        fresh, edited, finished = [], [], []
        previous: Log | None = None
        for log in logs:
            row = rows.pop(log.number, None)
            is_open = log is newest and self._is_of_this_loop(log)
            if row is None:
                row = Iteration(project=project, number=log.number, written_at=log.written_at, size=log.size)
                self._begin(row, log, previous, is_open=is_open)
                fresh.append(row)
                if not self.is_new:
                    self.changed.append("iterations")
            elif (row.size, row.written_at) != (log.size, log.written_at) or (row.ended_at is None) != is_open:
                if row.ended_at is not None and (is_open or log.size < row.size):
                    # A new run of the loop counts from 1 again and writes over the logs of the one before.
                    self._begin(row, log, previous, is_open=is_open)
                    row.ended_at = None
                    self.changed.append("iterations")
                edited.append(row)
            if row.ended_at is None and not is_open and not self.is_new:
                finished.append(row)
            row.size, row.written_at = log.size, log.written_at
            row.ended_at = None if is_open else log.written_at
            previous = log
        if rows:
            Iteration.objects.filter(pk__in=[row.pk for row in rows.values()]).delete()
            self.changed.append("iterations")
        Iteration.objects.bulk_create(fresh, batch_size=100)
        if edited:
            Iteration.objects.bulk_update(edited, ITERATION_FACTS, batch_size=100)
        for row in finished:
            self.tell(
                "iteration.finished",
                f"iteration:{project.slug}/{row.number}",
                number=row.number,
                duration_s=row.duration_s,
                story=row.story_key or None,
            )
        project.last_iteration_at = newest.written_at if newest else None
        if fresh or finished:
            project.durations = _durations(project)

    def _is_of_this_loop(self, log: Log) -> bool:
        """Say whether the running loop has written to a log, not the one before it."""
        started = self.project.loop_started_at
        # Of a loop that Andon started itself the moment is known.
        slack = timedelta(0) if self.project.loop_is_ours else CLOCK_SLACK
        return self.project.running and (started is None or log.written_at >= started - slack)

    def _begin(self, row: Iteration, log: Log, previous: Log | None, *, is_open: bool) -> None:
        row.started_at = self._started(log, previous, is_open=is_open)
        row.story_key = self._current_story() if is_open else ""

    def _started(self, log: Log, previous: Log | None, *, is_open: bool) -> datetime | None:
        """A log seen while it is written began about now; of others the end of the log before is known.

        Of a loop seen for the first time the first log cannot have begun before the loop.
        """
        if is_open and not self.is_new and self.was_running:
            return log.written_at
        begun = []
        if previous is not None and previous.number == log.number - 1:
            begun.append(previous.written_at)
        if is_open and self.project.loop_started_at:
            begun.append(self.project.loop_started_at)
        if not begun:
            return None
        took = (log.written_at - max(begun)).total_seconds()
        return max(begun) if 0 < took <= LONGEST_ITERATION_S else log.written_at if is_open else None

    def _current_story(self) -> str:
        return next((row.key for row in [current_row(list(self.project.stories.all()))] if row), "")

    def _costs(self) -> None:
        """Write the batch of usage.jsonl, and say of what is not counted that it is not."""
        project, seen = self.project, self.seen
        if seen.spent.entries:
            costs.save(project, seen.spent.entries)
            self.changed.append("usage")
        others = [sentence for sentence in project.warnings if not costs.is_warning(sentence)]
        warnings = [*others, *costs.warnings(seen.fingerprints)]
        if project.warnings != warnings:
            project.warnings = warnings
            self.changed.append("usage")

    def _activity(self) -> None:
        project, written = self.project, self.seen.written_at
        if written is None or (project.written_at is not None and written <= project.written_at):
            return
        if project.stalled:
            project.stalled = False
            self.changed.append("activity")
        told = self.seen.fingerprints.get("told", 0)
        project.written_at = written
        if project.running and self.now.timestamp() - told >= ACTIVITY_TOLD_EVERY.total_seconds():
            self.seen.fingerprints["told"] = int(self.now.timestamp())
            self.changed.append("activity")

    def _tell(self) -> bool:
        project = self.project
        if self.is_new:
            found: dict[str, Any] = {"total": project.total, "passed": project.passed, "ralph": project.ralph}
            self.tell("project.found", project.subject, path=project.path, error=project.error or None, **found)
        elif self.changed:
            self.tell("project.changed", project.subject, changed=sorted(set(self.changed)))
        return self.told_otherwise


def _starter(process: dict[str, Any]) -> By:
    """Return who had a loop started, Andon where nobody is known."""
    return By(process["by"], Via.SWEEP) if process.get("by") else SWEEP


def _story_row(story: ralph.Story) -> dict[str, Any]:
    return {
        "position": story.position,
        "title": story.title,
        "description": story.description,
        "criteria": list(story.acceptance_criteria),
        "priority": story.priority,
        "state": story.state.value,
        "group": story.group,
        "tags": list(story.tags),
        "depends_on": list(story.depends_on),
        "retries": story.retries,
        "failure_reason": story.failure_reason,
        "notes": story.notes,
    }


def _slug_warnings(project: Project) -> list[str]:
    """Return why a project is not shown under its directory's name, [] when it is."""
    if project.slug == project.name:
        return []
    return [ralph.slug_for(project.name, os.path.realpath(project.path), {project.name})[1]]


def _durations(project: Project) -> list[float]:
    recent = project.iterations.exclude(ended_at=None).exclude(started_at=None).order_by("-ended_at")[:KEPT_DURATIONS]
    durations = [row.duration_s for row in recent]
    return [round(value, 1) for value in reversed(durations) if value and value <= LONGEST_ITERATION_S]
