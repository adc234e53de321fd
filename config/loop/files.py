"""The files that a running loop keeps in its project: pid, logs, prompt."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from projects import ralph

PID_NAME = ".ralph.pid"
PROMPTS = ("prompt.md", "PROMPT.md")
MAX_PROMPT = 1024 * 1024

BUILT_IN_PROMPT = """\
You are one iteration of a loop. Do exactly one story, then end.

1. Read {folder}progress.txt if it exists, its section "Codebase Patterns" first, and {prd}.
2. If the document names a branchName, be on that branch; make it from the main branch if it does not exist.
3. Take the open story (not passed, failed or blocked) with the lowest priority number whose dependsOn have
   all passed. Do that story and no other.
4. Make every acceptance criterion true. Run the project's own checks and mend what they find.
5. Commit the code with the message `feat: [<story id>] <story title>`.
6. Then set "passes": true for that story in {prd}. If it cannot be done, set "failed": true instead and say
   why in "failureReason"; if a person has to decide something, set "blocked": true and say what in "notes".
7. Append to {folder}progress.txt: a heading `## <date> - <story id>`, what was done, and what the next
   iteration should know. Put what holds for the whole project under "Codebase Patterns" at its top.

If no open story is left after that, end your answer with <promise>COMPLETE</promise> on a line of its own.
Never write that otherwise.
"""


class Busy(RuntimeError):
    """A loop that is not ours works in the project."""


def claim_pid(root: Path, folder: Path) -> None:
    """Write our pid file, in place of a stale one. Raises Busy when its process lives in this project."""
    path = root / folder / PID_NAME
    pid = _pid_in(root, folder)
    if pid is not None and pid != os.getpid() and _works_in(pid, root, path):
        raise Busy(f"process {pid} of {folder / PID_NAME} is running in this project")
    fresh = path.with_name(f"{PID_NAME}.{secrets.token_hex(4)}")
    try:
        with fresh.open("x", encoding="ascii") as stream:
            stream.write(f"{os.getpid()}\n")
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def release_pid(root: Path, folder: Path) -> None:
    """Remove the pid file if it is still ours."""
    if _pid_in(root, folder) == os.getpid():
        (root / folder / PID_NAME).unlink(missing_ok=True)


def open_log(root: Path, folder: Path) -> tuple[int, int]:
    """Make the log after the highest existing one; return (N, a descriptor to read and append)."""
    logs = root / folder / "logs"
    logs.mkdir(exist_ok=True)
    directory = os.open(logs, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(directory) as entries:
            numbers = [ralph.iteration_number(entry.name) for entry in entries]
        number = max((known for known in numbers if known is not None), default=0)
        while True:
            number += 1
            with suppress(FileExistsError):
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                return number, os.open(f"iteration-{number}.log", flags, 0o644, dir_fd=directory)
    finally:
        os.close(directory)


def find_prompt(root: Path, prd: Path) -> Path | None:
    """Return the project's own prompt file beside its prd.json, relative to `root`, or None."""
    for name in PROMPTS:
        with suppress(OSError):
            os.close(ralph.open_inside(root, prd.parent / name))
            return prd.parent / name
    return None


def built_in_prompt(prd: Path) -> bytes:
    """Return the prompt for a project that has none; `prd` is relative to the project."""
    folder = "" if prd.parent == Path() else f"{prd.parent}/"
    return BUILT_IN_PROMPT.format(prd=prd, folder=folder).encode()


def _pid_in(root: Path, folder: Path) -> int | None:
    try:
        return ralph.parse_pid(ralph.read_inside(root, folder / PID_NAME, 64))
    except OSError:
        return None


def _works_in(pid: int, root: Path, path: Path) -> bool:
    """Say whether a process lives and has its directory in the project; a zombie has none."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(root)
    except PermissionError:
        # Somebody else's process: his loop if the pid file is his too, else only a number used again.
        with suppress(OSError):
            return Path(f"/proc/{pid}").stat().st_uid == path.stat(follow_symlinks=False).st_uid
        return False
    except OSError:
        return False
