"""What a probe asks and what came of it."""

import math
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias
from urllib.parse import quote, urlsplit

import re2

MAX_REASON = 300
_AS_WRITTEN = string.punctuation.translate(str.maketrans("", "", '"<>\\^`{|}'))


@dataclass(frozen=True, slots=True)
class Http:
    """GET over plain HTTP/1.1 or TLS; `listed`: the settings allow the host though it is not loopback."""

    host: str
    port: int
    tls: bool
    listed: bool
    request: bytes = field(repr=False)
    expect_status: int


@dataclass(frozen=True, slots=True)
class Tcp:
    """A connection to a port of 127.0.0.1 or ::1."""

    port: int


@dataclass(frozen=True, slots=True)
class Command:
    """A program whose exit code is 0 and whose output the pattern matches; `pattern` is an RE2 object."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(repr=False, hash=False)
    pattern: Any = field(repr=False, hash=False)


What: TypeAlias = Http | Tcp | Command


@dataclass(frozen=True, slots=True)
class Check:
    """A healthcheck, ready to be probed any number of times; times in seconds, their meaning as in the spec."""

    what: What
    timeout_s: float
    interval_s: float
    period_s: float
    failure_threshold: int
    success_threshold: int

    @classmethod
    def from_spec(
        cls, healthcheck: Mapping[str, Any], *, cwd: str, env: Mapping[str, str], hosts: frozenset[str]
    ) -> Self:
        """Prepare a normalized healthcheck (spec/services.md 1) of a service with this directory and environment.

        `hosts`: names and addresses, lower case, that http may go to beside loopback. Raises ValueError when it
        cannot be probed as it stands; its text holds nothing of the healthcheck.
        """
        try:
            match healthcheck["type"]:
                case "http":
                    what: What = _http(str(healthcheck["url"]), int(healthcheck["expect_status"]), hosts)
                case "tcp":
                    what = Tcp(port=_port(int(healthcheck["port"])))
                case "command":
                    what = _command(healthcheck, cwd, env)
                case _:
                    raise ValueError("no such type of healthcheck")
            return cls(
                what=what,
                timeout_s=float(healthcheck["timeout_s"]),
                interval_s=float(healthcheck.get("interval_s", 1)),
                period_s=float(healthcheck.get("period_s", 30)),
                failure_threshold=int(healthcheck.get("failure_threshold", 3)),
                success_threshold=int(healthcheck.get("success_threshold", 1)),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError("not a normalized healthcheck") from error


@dataclass(frozen=True, slots=True)
class Result:
    """How a probe went: `reason` is one inert line for a person, "" when ok; `took_ms` milliseconds."""

    ok: bool
    reason: str
    took_ms: float


def inert(text: str) -> str:
    """Return text that is safe to show on one line: what does not print is "?", and at most 300 characters."""
    return "".join(each if each.isprintable() else "?" for each in text[:MAX_REASON])


def deadline(seconds: float) -> float:
    """Return a total deadline in seconds as it is. Raises ValueError unless it is finite and positive."""
    if not 0 < seconds < math.inf:
        raise ValueError("a deadline is a positive number of seconds")
    return seconds


def _http(url: str, expect_status: int, hosts: frozenset[str]) -> Http:
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc:
        raise ValueError("not an absolute http url without a user")
    tls = parts.scheme == "https"
    standard = 443 if tls else 80
    port = _port(standard if parts.port is None else parts.port)
    name = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
    if not all("!" <= each <= "~" for each in name):
        raise ValueError("not a host name")
    target = quote(parts.path or "/", safe=_AS_WRITTEN)
    if parts.query:
        target += "?" + quote(parts.query, safe=_AS_WRITTEN)
    request = (
        f"GET {target} HTTP/1.1\r\n"
        f"Host: {name if port == standard else f'{name}:{port}'}\r\n"
        "User-Agent: andon-probe\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    return Http(
        host=host,
        port=port,
        tls=tls,
        listed=host in hosts,
        request=request.encode("ascii"),
        expect_status=expect_status,
    )


def _command(healthcheck: Mapping[str, Any], cwd: str, env: Mapping[str, str]) -> Command:
    argv = (*shlex.split(str(healthcheck["cmd"])), *map(str, healthcheck.get("args") or ()))
    if not argv:
        raise ValueError("no command")
    options = re2.Options()
    # RE2 would write a line to our standard error for each pattern that is too large for its DFA.
    options.log_errors = False
    try:
        pattern = re2.compile(str(healthcheck["expect_regex"]), options)
    except re2.error as error:
        raise ValueError("not a pattern of RE2") from error
    return Command(argv=argv, cwd=cwd, env=dict(env), pattern=pattern)


def _port(number: int) -> int:
    if not 1 <= number <= 65535:
        raise ValueError("not a port")
    return number
