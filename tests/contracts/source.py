"""Where our sources lie, and how a contract starts a program over them."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APPS = ("config", "projects", "services", "kanban")
TEMPLATES = ROOT / "templates"
VENDOR = ROOT / "config" / "static" / "vendor"


def files(*suffixes: str, beside: tuple[str, ...] = ("templates",)) -> list[Path]:
    """Return our files with these suffixes: the apps' and those of the folders `beside` them, nothing vendored."""
    found = [path for folder in (*APPS, *beside) for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    if ".py" in suffixes:
        found.append(ROOT / "manage.py")
    return sorted(path for path in found if VENDOR not in path.parents and "__pycache__" not in path.parts)


def modules() -> list[Path]:
    """Return the Python modules of the apps, without migrations."""
    return [path for path in files(".py") if "migrations" not in path.parts]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def places(path: Path, lines: Iterator[int]) -> list[str]:
    """Return `file:line` for each line."""
    return [f"{name_of(path)}:{line}" for line in lines]


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program of our environment at the root; a name without a slash is one of its scripts."""
    program = argv[0] if "/" in argv[0] else str(Path(sys.executable).with_name(argv[0]))
    return subprocess.run(
        [program, *argv[1:]],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def manage(home: Path, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run manage.py as an installation would: real settings, a home and a workspace of its own."""
    (home / "workspace").mkdir(exist_ok=True)
    places_ = {"ANDON_HOME": str(home / "home"), "ANDON_WORKSPACE": str(home / "workspace")}
    return run("python", "manage.py", *argv, DJANGO_SETTINGS_MODULE="config.settings", **places_, **environ)


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    return f"{' '.join(done.args[1:])} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
