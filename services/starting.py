"""What a managed process is started with: the executable and directory checked again, its environment, its log."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from django.conf import settings

from projects import pidfile, ralph
from projects.models import Project
from services import logs, rules, specs
from services.models import LOG_FOLDER, ManagedProcess
from services.processes import MARKER, Holder, Identity, Kernel, Member
from services.specs import reasons
from services.states import Purpose, Status


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a process is started with, made by its host: all of `env` beside what every program needs."""

    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]


# Filled in by the apps above, by purpose: makes on its host, with no transaction open, what a process is started in and
# with; what must not stand in its row (a token) is only here. Raises CannotStart.
prepare: dict[str, Callable[[ManagedProcess], Prepared]] = {}

LOOP_THERE = "a loop runs here already"
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TZ")


class CannotStart(Exception):
    """Nothing was started; the text is the reason."""


def environment(row: ManagedProcess, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the whole environment of a child: what every program needs, what its spec says, and whose it is.

    A loop also gets the variables that ANDON_LOOP_ENV names, with the worker's values.
    """
    names = {*INHERITED, *(settings.ANDON_LOOP_ENV if row.purpose == Purpose.LOOP else ())}
    base = {name: text for name, text in inherited.items() if name in names or name.startswith("LC_")}
    if row.purpose == Purpose.SERVICE:
        base["PATH"] = rules.search_path()
    return {**base, **row.env, MARKER: f"{row.marker}{row.generation}"}


def check(row: ManagedProcess) -> list[str]:
    """Return the command line, its executable resolved; CannotStart when executable or directory will not do (now)."""
    if row.purpose != Purpose.SERVICE:
        if not Path(row.cwd).is_dir():
            raise CannotStart(f"directory does not exist: {row.cwd}")
        if row.purpose == Purpose.LOOP:
            _need_no_loop(Path(row.cwd), row.node)
        return [row.cmd, *row.args]
    project = Project.objects.filter(slug=row.project).first()
    if project is None:
        raise CannotStart(f"project {row.project} is not known any more")
    system = rules.system()
    # A spec that was accepted once is judged again: links, directories and rules may have changed.
    found = specs.validate_document({"specs": [row.spec]}, rules.limits(project), system)
    if isinstance(found, specs.Invalid):
        raise CannotStart(found.reason.replace("spec[0]: ", ""))
    program = system.which(row.cmd)
    if program is None:
        raise CannotStart(f"{row.cmd} was not found in the directories of PATH that only their owner may write")
    return [program, *row.args]


def _need_no_loop(root: Path, node: str) -> None:
    """Refuse to start a second loop in a project: what its row says may be a moment old."""
    prd = ralph.find_prd(root)
    found = pidfile.look(root, prd.parent if prd else Path(), node)
    if found.is_running or found.state is pidfile.State.UNKNOWN:
        raise CannotStart(f"{LOOP_THERE}: process {found.pid} of {pidfile.NAME}")
    try:
        with ralph.project_lock(root):
            return
    except ralph.ProjectBusy:
        raise CannotStart(f"{LOOP_THERE}: somebody holds the project's lock") from None


def describe(holder: Holder) -> str:
    """Say who listens on a port."""
    who = f"{holder.name or 'process'} {holder.pid}" if holder.pid else "a process of another user"
    return f"{who} on {holder.address}"


def still_held(kernel: Kernel, row: ManagedProcess, leader: Identity | None) -> str:
    """Say who holds a port of a process that is gone and may have come from it, though it bears no sign of ours."""
    since = leader.start_ticks if leader else 0
    for port, holder in sorted(kernel.listeners(row.ports).items() if row.ports else ()):
        if holder.pid is None or holder.start_ticks is None or holder.start_ticks >= since:
            return f"port {port} is still held by {describe(holder)}, which bears no sign of ours"
    return ""


def spawn(row: ManagedProcess, kernel: Kernel, *, now: datetime) -> Identity:
    """Start the process of this generation, its output appended to its log below a boundary line.

    Raises CannotStart with the reason: `port-conflict (…)`, a missing program or directory, a log not to be opened.
    """
    argv, cwd, env, name = check(row), row.cwd, environment(row), row.cmd
    if make := prepare.get(row.purpose):
        made = make(row)
        argv, cwd, env = list(made.argv), made.cwd, {**env, **made.env, MARKER: env[MARKER]}
        name = argv[0]
    if busy := kernel.listeners(row.ports):
        port, holder = min(busy.items())
        raise CannotStart(reasons.port_conflict(port, describe(holder)))
    try:
        log = logs.open_log(LOG_FOLDER, row.log_name)
    except OSError as error:
        raise CannotStart(f"its log cannot be opened: {error.strerror or error}") from None
    try:
        note(log, f"generation {row.generation} starts {now:%Y-%m-%dT%H:%M:%SZ}")
        return kernel.spawn(argv, cwd=cwd, env=env, log_fd=log)
    except (OSError, ValueError) as error:
        reason = f"{name} could not be started: {getattr(error, 'strerror', None) or error}"
        note(log, reason)
        raise CannotStart(reason) from None
    finally:
        os.close(log)


def note(log: int, text: str) -> None:
    """Write a boundary line; a full disk must not keep anything from being started or stopped."""
    try:
        logs.boundary(log, text)
    except OSError:
        return


def tail(row: ManagedProcess, lines: int = 20, size: int = 2048) -> str:
    """Return the last lines that a process printed as inert text, "" when there are none; at most `size` characters."""
    try:
        fd = logs.open_for_reading(LOG_FOLDER, row.log_name)
    except OSError:
        return ""
    try:
        chunk = logs.tail_bytes(fd, tail=size, head=row.log_head)
    finally:
        os.close(fd)
    printed = [line for line in logs.plain(chunk.text).splitlines() if not line.startswith("--- andon: ")]
    return "\n".join(printed[-lines:])[-size:]


def log_file(row: ManagedProcess) -> tuple[int, int] | None:
    """Return (device, inode) of a process's log, None when there is none."""
    try:
        found = (LOG_FOLDER / row.log_name).lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def earlier(row: ManagedProcess) -> int | None:
    """Return the one of its batch that is to be started before it."""
    if not row.batch:
        return None
    waiting = ManagedProcess.objects.filter(
        batch=row.batch, position__lt=row.position, status=Status.STARTING, pid__isnull=True
    )
    return waiting.order_by("position").values_list("pk", flat=True).first()


def later(row: ManagedProcess) -> list[int]:
    """Return the one of its batch that is to be started after it."""
    waiting = ManagedProcess.objects.filter(batch=row.batch, position__gt=row.position, status=Status.STARTING)
    return list(waiting.order_by("position").values_list("pk", flat=True)[:1])


def leader_among(members: Sequence[Member]) -> Identity | None:
    """Return the leader among the members of one generation: the oldest, if it founded its session."""
    oldest = min(members, key=lambda each: (each.identity.start_ticks, each.identity.pid), default=None)
    return oldest.identity if oldest is not None and oldest.session == oldest.identity.pid else None
