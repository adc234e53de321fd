"""A spec file: accepted whole and normalized, or refused for its first fault."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from services.specs import environment, healthchecks, reasons, workdirs
from services.specs.context import Context
from services.specs.executables import is_allowed
from services.specs.limits import Limits
from services.specs.reasons import Refused, shown
from services.specs.values import MAX_DEPTH, given, integer, is_deeper, is_storable, is_text, number

ROOT_FIELDS = ("specs", "written_by", "wi_id")
SPEC_FIELDS = (
    *("name", "cmd", "args", "cwd", "env", "ports", "ttl_minutes", "attrs", "healthcheck"),
    *("restart", "stop_grace_s"),
)  # fmt: skip
RESTART = ("never", "on-failure", "always")
MAX_WARNINGS = 20

_KEBAB = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Accepted:
    """A valid file: its specs with every field present, in the order of the table, and what was ignored."""

    specs: list[dict[str, Any]]
    warnings: list[str]
    written_by: str | None
    wi_id: str | None


@dataclass(frozen=True, slots=True)
class Invalid:
    """A refused file and the exact reason."""

    reason: str


def validate(raw: bytes | str, limits: Limits, context: Context) -> Accepted | Invalid:
    """Validate a spec file's content. Never raises; asks nothing but `context`."""
    try:
        return validate_document(_parse(raw, limits.max_bytes), limits, context)
    except Refused as refused:
        return Invalid(refused.reason)


def validate_document(document: object, limits: Limits, context: Context) -> Accepted | Invalid:
    """Validate a spec file that was parsed already (a form's). Never raises for what JSON can express."""
    if is_deeper(document, MAX_DEPTH):
        return Invalid(reasons.json_parse("nested too deep"))
    try:
        return _accept(document, limits, context)
    except Refused as refused:
        return Invalid(refused.reason)


def check_sidecar(accepted: Accepted, agent: str, wi: str) -> Invalid | None:
    """Say whether a sidecar does not speak for its agent and work item; an absent name is a mismatch."""
    if accepted.written_by != agent:
        return Invalid(reasons.written_by_mismatch(agent, accepted.written_by))
    if accepted.wi_id != wi:
        return Invalid(reasons.wi_id_mismatch(wi, accepted.wi_id))
    return None


def _parse(raw: bytes | str, max_bytes: int) -> object:
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    if len(data) > max_bytes:
        raise Refused(reasons.unreadable(reasons.larger_than(max_bytes)))
    try:
        # Decoded here: json.loads would take UTF-16 as well, and UTF-8 with surrogates in it.
        return json.loads(data.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise Refused(reasons.json_parse("nested too deep")) from None
    except ValueError as error:
        raise Refused(reasons.json_parse(str(error))) from None


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


def _accept(document: object, limits: Limits, context: Context) -> Accepted:
    if not isinstance(document, dict):
        raise Refused(reasons.NOT_AN_OBJECT)
    given_specs = document.get("specs")
    if not isinstance(given_specs, list):
        raise Refused(reasons.SPECS_MISSING)
    if not given_specs:
        raise Refused(reasons.SPECS_EMPTY)
    if len(given_specs) > limits.max_specs:
        raise Refused(f"specs-too-many (>{limits.max_specs})")
    specs: list[dict[str, Any]] = []
    for index, spec in enumerate(given_specs):
        normal = _spec(spec, index, limits, context)
        if any(normal["name"] == other["name"] for other in specs):
            raise Refused(f"spec[{index}]: duplicate-name ({normal['name']})")
        specs.append(normal)
    for key in ("written_by", "wi_id"):
        if document.get(key) is not None and not is_text(document[key]):
            raise Refused(f"{key}-not-string")
    return Accepted(specs, _warnings(document, given_specs), document.get("written_by"), document.get("wi_id"))


def _spec(spec: object, index: int, limits: Limits, context: Context) -> dict[str, Any]:
    try:
        return _normalized(spec, limits, context)
    except workdirs.WorkdirRefused as refused:
        raise Refused(f"{reasons.INVALID_WORKDIR}spec[{index}]: {refused.reason}") from None
    except Refused as refused:
        raise Refused(f"spec[{index}]: {refused.reason}") from None


def _normalized(spec: object, limits: Limits, context: Context) -> dict[str, Any]:
    if not isinstance(spec, dict):
        raise Refused(reasons.NOT_AN_OBJECT)
    # Evaluated from top to bottom: this is the order of the checks.
    return {
        "name": _name(spec),
        "cmd": _cmd(spec, limits, context),
        "args": _args(spec),
        "cwd": _cwd(spec, limits, context),
        "env": _env(spec, limits),
        "ports": _ports(spec),
        "ttl_minutes": _ttl(spec),
        "attrs": _attrs(spec),
        "healthcheck": healthchecks.check(spec.get("healthcheck"), limits, context),
        "restart": _restart(spec),
        "stop_grace_s": _stop_grace(spec),
    }


def _name(spec: dict[str, Any]) -> str:
    name = spec.get("name")
    if not isinstance(name, str) or not name:
        raise Refused("name-missing")
    if len(name) > 64:
        raise Refused("name-too-long (>64)")
    if not _KEBAB.fullmatch(name):
        raise Refused(f"name-not-kebab-case ({shown(name)})")
    return name


def _cmd(spec: dict[str, Any], limits: Limits, context: Context) -> str:
    cmd = spec.get("cmd")
    if not isinstance(cmd, str) or not cmd:
        raise Refused("cmd-missing")
    if len(cmd) > 200:
        raise Refused("cmd-too-long")
    if not is_allowed(cmd, limits, context):
        raise Refused(f"cmd-not-on-allowlist ({shown(cmd)})")
    return cmd


def _args(spec: dict[str, Any]) -> list[str]:
    args = given(spec, "args", [])
    if not isinstance(args, list):
        raise Refused("args-not-array")
    if len(args) > 64:
        raise Refused("args-too-many (>64)")
    for arg in args:
        if not is_text(arg):
            raise Refused("arg-not-string")
        if len(arg) > 500:
            raise Refused("arg-too-long")
    return list(args)


def _cwd(spec: dict[str, Any], limits: Limits, context: Context) -> str:
    cwd = given(spec, "cwd", limits.default_cwd)
    if not is_text(cwd):
        raise Refused("cwd-not-string")
    # PATH_MAX of Linux.
    if len(cwd) > 4096:
        raise Refused("cwd-too-long")
    workdirs.check(cwd, limits, context)
    return cwd


def _env(spec: dict[str, Any], limits: Limits) -> dict[str, str]:
    env = given(spec, "env", {})
    if not isinstance(env, dict):
        raise Refused("env-not-object")
    if len(env) > 32:
        raise Refused("env-too-many (>32)")
    for key, value in env.items():
        if not isinstance(key, str) or not environment.SHAPE.fullmatch(key):
            raise Refused(f"env-key-invalid-shape ({shown(key)})")
        if environment.is_denied(key, limits.denied_env):
            raise Refused(f"env-key-denied ({shown(key)})")
        if not is_text(value):
            raise Refused(f"env-value-not-string ({shown(key)})")
        if len(value) > 1000:
            raise Refused(f"env-value-too-long ({shown(key)})")
    return dict(env)


def _ports(spec: dict[str, Any]) -> list[int]:
    ports = given(spec, "ports", [])
    if not isinstance(ports, list):
        raise Refused("ports-not-array")
    if len(ports) > 20:
        raise Refused("ports-too-many (>20)")
    taken: list[int] = []
    for given_port in ports:
        port = integer(given_port, 1024, 65535)
        if port is None:
            raise Refused(f"port-invalid ({shown(given_port)})")
        if port in taken:
            raise Refused(f"port-duplicate ({port})")
        taken.append(port)
    return taken


def _ttl(spec: dict[str, Any]) -> int:
    minutes = number(given(spec, "ttl_minutes", 240))
    if not isinstance(minutes, int) or minutes < 1:
        raise Refused("ttl-invalid")
    if minutes > 1440:
        raise Refused("ttl-too-long (>1440min)")
    return minutes


def _attrs(spec: dict[str, Any]) -> dict[str, Any]:
    attrs = given(spec, "attrs", {})
    if not isinstance(attrs, dict):
        raise Refused("attrs-not-object")
    try:
        text = json.dumps(attrs, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise Refused(f"attrs-not-serializable ({shown(str(error))})") from None
    # A database of JSON cannot hold it, not even escaped.
    if not all(is_storable(inner) for inner in _texts(attrs)):
        raise Refused("attrs-not-serializable (NUL character)")
    if size > 2048:
        raise Refused("attrs-too-large (>2048B)")
    return dict(attrs)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _restart(spec: dict[str, Any]) -> str:
    restart = given(spec, "restart", "never")
    if not isinstance(restart, str) or restart not in RESTART:
        raise Refused("restart-invalid")
    return restart


def _stop_grace(spec: dict[str, Any]) -> int:
    seconds = integer(given(spec, "stop_grace_s", 10), 0, 60)
    if seconds is None:
        raise Refused("stop-grace-invalid")
    return seconds


def _warnings(document: dict[str, Any], specs: list[dict[str, Any]]) -> list[str]:
    """Name the keys that were ignored: at most 20 of them, then how many more."""
    found = list(_unknown_keys(document, specs))
    more = len(found) - MAX_WARNINGS
    return found if more <= 0 else [*found[:MAX_WARNINGS], f"and {more} more unknown keys"]


def _unknown_keys(document: dict[str, Any], specs: list[dict[str, Any]]) -> Iterator[str]:
    yield from (_unknown("", key) for key in document if key not in ROOT_FIELDS)
    for index, spec in enumerate(specs):
        prefix = f"spec[{index}]: "
        yield from (_unknown(prefix, key) for key in spec if key not in SPEC_FIELDS)
        check = spec["healthcheck"]
        known = (*healthchecks.COMMON, *healthchecks.FIELDS[check["type"]])
        yield from (_unknown(f"{prefix}healthcheck: ", key) for key in check if key not in known)


def _unknown(prefix: str, key: object) -> str:
    return f'{prefix}unknown key "{shown(key)[:64]}"'
