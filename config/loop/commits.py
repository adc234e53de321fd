"""Which commits were made while an iteration ran."""

import re
import time
from pathlib import Path

from projects import git

MOST = 50
LIMIT_S = 10

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Commits:
    """Remember where HEAD is now; `made` tells what was committed on top of it since.

    All questions to git together take at most LIMIT_S seconds.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._left_s: float = LIMIT_S
        self._before = self._head()

    def made(self) -> list[str] | None:
        """Return the commits by their whole names, the newest first, at most 50: HEAD's first parents.

        None when they cannot be known: no repository, no commit before, HEAD moved to something that does not
        come after it, any error of git.
        """
        after = self._head()
        if not self._before or not after:
            return None
        if after == self._before:
            return []
        try:
            self._ask("merge-base", "--is-ancestor", self._before, after)
            # Without --ancestry-path an older branch that took ours in would bring its own commits along.
            paths = "--first-parent", "--ancestry-path", f"--max-count={MOST}"
            listed = self._ask("rev-list", *paths, after, f"^{self._before}")
        except git.GitError:
            return None
        return [name for name in listed.split() if _COMMIT.fullmatch(name)]

    def _head(self) -> str:
        try:
            name = self._ask("rev-parse", "--quiet", "--verify", "HEAD^{commit}").strip()
        except git.GitError:
            return ""
        return name if _COMMIT.fullmatch(name) else ""

    def _ask(self, *args: str) -> str:
        if self._left_s <= 0:
            raise git.GitError(args, None, "no time is left")
        began = time.monotonic()
        try:
            return git.run(args, self._root, timeout_s=self._left_s).decode("ascii", "replace")
        finally:
            self._left_s -= time.monotonic() - began
