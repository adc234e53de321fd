"""System checks: a misconfiguration is loud at start."""

import re
import sys
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import Error, Tags, register

MIN_SQLITE = (3, 38)


@register(Tags.compatibility)
def platform_fits(**_: Any) -> list[Any]:
    """Andon reads /proc and uses pidfds."""
    if sys.platform != "linux":
        return [Error("Andon runs on Linux only.", hint="Run it on a Linux machine or container.", id="andon.E001")]
    return []


@register(Tags.database)
def sqlite_is_new_enough(**_: Any) -> list[Any]:
    """The event log is written with ->> (SQLite 3.38)."""
    import sqlite3

    if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3") and sqlite3.sqlite_version_info < MIN_SQLITE:
        hint = "Use a Python with a newer SQLite, or set DATABASE_URL to a PostgreSQL database."
        return [Error(f"SQLite {sqlite3.sqlite_version} is too old.", hint=hint, id="andon.E002")]
    return []


@register()
def workspace_exists(**_: Any) -> list[Any]:
    """A root that is not there shows nothing, which looks like a fault of Andon's."""
    return [
        checks.Warning(
            f"The workspace root {root} does not exist.", hint="Make it or set ANDON_WORKSPACE.", id="andon.W001"
        )
        for root in settings.ANDON_WORKSPACE
        if not root.is_dir()
    ]


@register(Tags.security, deploy=True)
def hosts_are_plain(**_: Any) -> list[Any]:
    """A wildcard host lets anybody's page name our server its own."""
    if any(re.search(r"[*]", host) for host in settings.ALLOWED_HOSTS):
        return [Error("ALLOWED_HOSTS holds a wildcard.", hint="List the names that people type.", id="andon.E003")]
    return []
