"""Which field a reason speaks of, so that a form can show it there."""

import re

from services.specs.reasons import INVALID_WORKDIR

_INDEX = re.compile(r"spec\[([0-9]{1,9})\]: ")

# The first one that the reason's code starts with.
_FIELDS = (
    ("name-", "name"),
    ("duplicate-name", "name"),
    ("cmd-", "cmd"),
    ("args-", "args"),
    ("arg-", "args"),
    ("cwd-", "cwd"),
    ("env-", "env"),
    ("ports-", "ports"),
    ("port-", "ports"),
    ("ttl-", "ttl_minutes"),
    ("attrs-", "attrs"),
    ("healthcheck-type-", "healthcheck.type"),
    ("healthcheck-timeout-", "healthcheck.timeout_s"),
    ("healthcheck-interval-", "healthcheck.interval_s"),
    ("healthcheck-url-", "healthcheck.url"),
    ("healthcheck-expect-status-", "healthcheck.expect_status"),
    ("healthcheck-cmd-", "healthcheck.cmd"),
    # Clients send `shell`, but what is refused is a character of the command.
    ("healthcheck-shell-not-allowed", "healthcheck.cmd"),
    ("healthcheck-shell-", "healthcheck.shell"),
    ("healthcheck-expect-regex-", "healthcheck.expect_regex"),
    ("healthcheck-args-", "healthcheck.args"),
    ("healthcheck-port-", "healthcheck.port"),
    ("healthcheck-period-", "healthcheck.period_s"),
    ("healthcheck-threshold-", "healthcheck.failure_threshold"),
    ("healthcheck-", "healthcheck"),
    ("restart-", "restart"),
    ("stop-grace-", "stop_grace_s"),
    ("specs-", "specs"),
    ("written_by-", "written_by"),
    ("written-by-", "written_by"),
    ("wi_id-", "wi_id"),
    ("wi-id-", "wi_id"),
)


def field_of(reason: str) -> tuple[int | None, str | None]:
    """Return the index of the spec and the field (`cwd`, `healthcheck.url` …) that a reason speaks of.

    None for what it does not name: a reason of the whole file has neither.
    """
    is_workdir = reason.startswith(INVALID_WORKDIR)
    text = reason.removeprefix(INVALID_WORKDIR)
    prefix = _INDEX.match(text)
    index = int(prefix[1]) if prefix else None
    if is_workdir:
        return index, "cwd"
    code = text[prefix.end() :] if prefix else text
    return index, next((field for start, field in _FIELDS if code.startswith(start)), None)
