"""Spec files of agents that nobody knows: shown, never started, and discarded by hand."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings

from projects.errors import Conflict, Missing
from projects.events import By, record, writing
from services import logs, specs

SHOWN = 50
CONTENT_SHOWN = 4000
HIDDEN = "…"
# However an agent writes it.
ENVIRONMENTS = frozenset({"env", "environment"})


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """One file as pages show it. `content` is inert text without values of environments, "" when not to be shown."""

    agent: str
    size: int
    at: datetime | None
    problem: str
    content: str
    is_cut: bool


def listed() -> tuple[list[Unclaimed], str]:
    """Return the first 50 unclaimed files by agent, and why there may be others that cannot be seen ("" = none)."""
    try:
        found = specs.list_sidecars(settings.ANDON_HOME)
    except specs.Unreadable as refusal:
        return [], refusal.reason
    return [_shown(each) for each in found[:SHOWN]], ""


def discard(agent: str, *, by: By, now: datetime) -> None:
    """Remove an agent's spec file unread. Records sidecar.discarded.

    Raises Missing for no agent id and when there is no file, Conflict when it cannot be removed.
    """
    if not specs.is_agent_id(agent):
        raise Missing("not-found", "No agent has such a name.")
    try:
        is_gone = specs.delete_sidecar(settings.ANDON_HOME, agent)
    except specs.Unreadable as refusal:
        raise Conflict("unreadable", f"The file of {agent} cannot be removed: {refusal.reason}.") from None
    if not is_gone:
        raise Missing("not-found", f"There is no file of {agent} any more.")
    with writing():
        record("sidecar.discarded", f"agent:{agent}", by=by, now=now)


def _shown(sidecar: specs.Sidecar) -> Unclaimed:
    problem, content, is_cut = sidecar.problem or "", "", False
    if not problem:
        try:
            raw = specs.read_sidecar(settings.ANDON_HOME, sidecar.agent)
        except specs.Unreadable as refusal:
            raw, problem = None, refusal.reason
        text = "" if raw is None else _without_values(raw)
        if raw is not None and not text:
            problem = "no spec file, so its content is not shown"
        content, is_cut = logs.plain(text[:CONTENT_SHOWN]), len(text) > CONTENT_SHOWN
    at = datetime.fromtimestamp(sidecar.mtime, UTC) if 0 < sidecar.mtime < 1 << 35 else None
    return Unclaimed(sidecar.agent, sidecar.size, at, problem, content, is_cut)


def _without_values(raw: bytes) -> str:
    """Return a spec file as text, without the values of environments and without specs that are no objects.

    "" for what is no object with a list of specs: nobody can tell where values stand in it.
    """
    try:
        document = json.loads(raw)
        if not (isinstance(document, dict) and isinstance(document.get("specs"), list)):
            return ""
        document["specs"] = [spec if isinstance(spec, dict) else HIDDEN for spec in document["specs"]]
        text = json.dumps(_concealed(document), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return ""
    return text.encode("utf-8", "replace").decode()


def _concealed(value: Any) -> Any:
    """Return a JSON value in which every environment, at whatever depth, has its names only."""
    if isinstance(value, list):
        return [_concealed(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _names_only(each) if key.strip().lower() in ENVIRONMENTS else _concealed(each)
        for key, each in value.items()
    }


def _names_only(environment: object) -> object:
    return dict.fromkeys(environment, HIDDEN) if isinstance(environment, dict) else HIDDEN


def hidden(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a normalized spec with the names of its environment only."""
    return {**spec, "env": _names_only(spec.get("env") or {})}
