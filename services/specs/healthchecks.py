"""The healthcheck of a spec: http, command or tcp."""

import shlex
from typing import Any

from services.specs import patterns, urls
from services.specs.context import Context
from services.specs.executables import is_allowed
from services.specs.limits import Limits
from services.specs.reasons import Refused, shown
from services.specs.values import given, integer, is_storable, is_text, number

SHELL_CHARACTERS = frozenset(";&|<>$()`\n")
FIELDS = {
    "http": ("url", "expect_status"),
    "command": ("cmd", "args", "shell", "expect_regex"),
    "tcp": ("port",),
}
COMMON = ("type", "timeout_s", "interval_s", "period_s", "failure_threshold", "success_threshold")


def split_command(cmd: str) -> list[str]:
    """Split a command check's `cmd` into words as a POSIX shell would, expanding nothing.

    Raises ValueError for an open quotation or a trailing backslash.
    """
    return shlex.split(cmd)


def check(healthcheck: object, limits: Limits, context: Context) -> dict[str, Any]:
    """Return a healthcheck with all fields of its type. Raises Refused with the reason."""
    if not isinstance(healthcheck, dict):
        raise Refused("healthcheck-missing")
    kind = healthcheck.get("type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise Refused(f"healthcheck-type-invalid ({shown(kind)})")
    timeout = number(healthcheck.get("timeout_s"))
    if timeout is None or not 0 < timeout <= 3600:
        raise Refused("healthcheck-timeout-invalid")
    interval = number(given(healthcheck, "interval_s", 1))
    if interval is None or not 0 < interval <= 600:
        raise Refused("healthcheck-interval-invalid")
    of_type = {"http": _http, "command": _command, "tcp": _tcp}[kind](healthcheck, limits, context)
    period = number(given(healthcheck, "period_s", 30))
    if period is None or not 1 <= period <= 600:
        raise Refused("healthcheck-period-invalid")
    failures = integer(given(healthcheck, "failure_threshold", 3), 1, 1000)
    successes = integer(given(healthcheck, "success_threshold", 1), 1, 1000)
    if failures is None or successes is None:
        raise Refused("healthcheck-threshold-invalid")
    return {
        "type": kind,
        "timeout_s": timeout,
        "interval_s": interval,
        **of_type,
        "period_s": period,
        "failure_threshold": failures,
        "success_threshold": successes,
    }


def _http(healthcheck: dict[str, Any], limits: Limits, context: Context) -> dict[str, Any]:
    url = healthcheck.get("url")
    if not isinstance(url, str) or not url:
        raise Refused("healthcheck-url-missing")
    urls.check(url, limits, context)
    if healthcheck.get("expect_status") is None:
        raise Refused("healthcheck-expect-status-missing")
    status = integer(healthcheck["expect_status"], 100, 599)
    if status is None:
        raise Refused("healthcheck-expect-status-invalid")
    return {"url": url, "expect_status": status}


def _command(healthcheck: dict[str, Any], limits: Limits, context: Context) -> dict[str, Any]:
    cmd, shell, regex = (healthcheck.get(key) for key in ("cmd", "shell", "expect_regex"))
    if not isinstance(cmd, str) or not cmd:
        raise Refused("healthcheck-cmd-missing")
    if len(cmd) > 1000:
        raise Refused("healthcheck-cmd-too-long")
    if not isinstance(shell, bool):
        raise Refused("healthcheck-shell-not-boolean")
    if not isinstance(regex, str) or not regex:
        raise Refused("healthcheck-expect-regex-missing")
    if len(regex) > 500:
        raise Refused("healthcheck-expect-regex-too-long")
    patterns.check(regex)
    program = _program(cmd)
    if not is_storable(cmd) or not is_allowed(program, limits, context):
        raise Refused(f"healthcheck-cmd-not-on-allowlist ({shown(program)})")
    if not SHELL_CHARACTERS.isdisjoint(cmd):
        raise Refused("healthcheck-shell-not-allowed")
    args = given(healthcheck, "args", [])
    if not isinstance(args, list) or len(args) > 64 or not all(is_text(arg) and len(arg) <= 500 for arg in args):
        raise Refused("healthcheck-args-invalid")
    return {"cmd": cmd, "args": list(args), "shell": shell, "expect_regex": regex}


def _program(cmd: str) -> str:
    """Return the first word of a command; all of it when it cannot be split."""
    try:
        words = split_command(cmd)
    except ValueError:
        return cmd
    return words[0] if words else cmd


def _tcp(healthcheck: dict[str, Any], _limits: Limits, _context: Context) -> dict[str, Any]:
    port = integer(healthcheck.get("port"), 1, 65535)
    if port is None:
        raise Refused("healthcheck-port-invalid")
    return {"port": port}
