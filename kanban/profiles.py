"""The profiles that Andon ships, and how a profile's template becomes a command line. Knows no database."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kanban.states import Reports

CLI = Path(__file__).with_name("andon_cli.py")
DEMO = Path(__file__).with_name("demo_worker.py")
# Stand for whole arguments, so that nothing a task says is ever read as an option or by a shell.
PLACEHOLDERS = ("task_id", "title", "workspace", "context_file", "python", "demo")
_READ = (
    "Work on the task that the file named by the environment variable ANDON_CONTEXT describes: read that file first, "
    "it also says how to report. Work in the current directory."
)
SHIPPED: dict[str, dict[str, Any]] = {
    "demo": {
        "argv": ["{python}", "{demo}", "{task_id}", "{workspace}", "{context_file}"],
        "enabled": True,
        "concurrency": 4,
    },
    "claude": {
        "argv": ["claude", "-p", _READ, "--output-format", "json", "--permission-mode", "acceptEdits"],
        "reports": Reports.ENVELOPE,
    },
    "codex": {"argv": ["codex", "exec", "--full-auto", "--skip-git-repo-check", _READ]},
    "hermes": {"argv": ["hermes", "chat", "-q", _READ]},
}


def fill(argv: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return a command line: each argument that is `{name}` of PLACEHOLDERS and nothing else is replaced."""
    own = {"python": sys.executable, "demo": str(DEMO), **values}
    return [own.get(word[1:-1], word) if word.startswith("{") and word.endswith("}") else word for word in argv]


def is_installed(argv: Sequence[str], path: str) -> bool:
    """Say whether the executable of a template is there: a file of ours, an absolute path, or a name on `path`."""
    if not argv:
        return False
    return argv[0] == "{python}" or shutil.which(argv[0], path=path) is not None


def problem(argv: object) -> str:
    """Say what is wrong with a template, "" when nothing is."""
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        return "It is a list of texts: the program, then its arguments."
    if not argv[0].strip() or any("\x00" in word for word in argv):
        return "The first text names the program; none holds a NUL character."
    for word in argv:
        if word.startswith("{") and word.endswith("}") and word[1:-1] not in PLACEHOLDERS:
            known = " ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            return f"{word} stands for nothing; there are {known}."
    return ""
