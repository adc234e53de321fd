"""Where a service may run: inside an allowed root and a git work tree."""

from pathlib import PurePosixPath

from services.specs.context import Context
from services.specs.limits import Limits
from services.specs.reasons import Refused, shown

MAX_PARENTS = 6


class WorkdirRefused(Refused):
    """The reason gets a prefix of its own, which callers key on."""


def check(cwd: str, limits: Limits, context: Context) -> None:
    """Refuse (`WorkdirRefused`) a text that is no working directory.

    Links are resolved before the roots are asked, and nothing outside them is told about.
    """
    if not cwd.startswith("/"):
        raise WorkdirRefused("cwd-not-absolute")
    found = context.stat(cwd)
    if not any(PurePosixPath(found.real).is_relative_to(root) for root in limits.roots):
        raise WorkdirRefused("cwd-outside-allowed-root")
    if found.kind in {"missing", "unreadable"}:
        raise WorkdirRefused(f"directory does not exist: {shown(cwd)}")
    if found.kind != "dir":
        raise WorkdirRefused(f"path is not a directory: {shown(cwd)}")
    _check_git(cwd, found.real, context)


def _check_git(cwd: str, real: str, context: Context) -> None:
    here = PurePosixPath(real)
    for folder in (here, *here.parents[:MAX_PARENTS]):
        git = context.stat(str(folder / ".git"))
        if git.kind == "dir":
            return
        if git.kind == "file":
            # gitrepository-layout(5); git itself looks no further up than a broken pointer.
            if git.head.startswith(b"gitdir:"):
                return
            raise WorkdirRefused(f'.git file present but not a worktree pointer (no "gitdir:" prefix): {shown(cwd)}')
    raise WorkdirRefused(f"no .git directory or worktree pointer at {shown(cwd)}")
