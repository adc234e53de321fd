"""Run a coding agent again and again until every story of a project has passed (spec/projects.md 8).

Knows no Django: `manage.py loop` is its command line. Linux only.
"""

from config.loop.runner import Limits, WrongUsage, run

__all__ = ["Limits", "WrongUsage", "run"]
