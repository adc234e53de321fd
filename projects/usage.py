"""What one iteration cost: a usage.jsonl line or an agent's own result envelope (spec/projects.md 6)."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

MAX_COST_USD = Decimal(100_000)
MAX_TOKENS = 10**12
MAX_COUNT = 10**7
MAX_SECONDS = 366 * 86_400
MAX_TEXT = 512
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)

_FAILED_WORDS = ("error", "failed", "failure")
_DECIMAL_TEXT = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,18})?")
_QUOTA = re.compile(
    r"\brate[ _-]?limit|\b(usage|session|weekly|daily|hourly) limit|\blimit (was )?(reached|exceeded)"
    r"|(hit|reached) your limit|\bquotas?\b|\boverloaded|\btoo many requests|\bresource[ _]exhausted"
    # A bare number is a status only beside a word that says so: "429 passed" and "line 429" are not.
    r"|\b(http(/[0-9.]+)?|status|code|api|error)\b[^\n0-9]{0,24}(?<!line )\b(429|529)\b|^\W*(429|529)\W*$"
    r"|\b(429|529)\b\W{1,3}(client|server|error|over|api)",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Usage:
    """One record; None is "not said". `cost` is US dollars (None: unknown, never 0), `time` is UTC.

    `failed` is true of what met a quota too: then `rate_limited` says why.
    """

    time: datetime | None = None
    project: str | None = None
    run: str | None = None
    story: str | None = None
    iteration: int | None = None
    cost: Decimal | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_tokens: int | None = None
    cache_read_tokens: int | None = None
    duration_s: float | None = None
    duration_api_s: float | None = None
    num_turns: int | None = None
    is_error: bool | None = None
    subtype: str | None = None
    status: str | None = None
    exit_code: int | None = None
    session_id: str | None = None
    model: str | None = None
    failed: bool = False
    rate_limited: bool = False


def parse_record(obj: dict[str, Any]) -> Usage:
    """Read one usage record under any of the names that the wild uses; unknown keys are ignored.

    Texts are cut to 512 characters, but never a session's id: cut short it would be another session's.
    Raises ValueError, with the reason, for a malformed, negative, not finite, boolean or absurd value.
    """
    if not isinstance(obj, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - a line of a file, not a caller's mistake
    is_error = _boolean(obj, "is_error", "isError")
    exit_code = _integer([obj], "exit_code", "exitCode", lowest=-255, highest=2**32)
    subtype, status = _text(obj, "subtype"), _text(obj, "status")
    failed = bool(is_error or exit_code) or any(
        word.lower().startswith(_FAILED_WORDS) for word in (subtype, status) if word
    )
    tokens = [obj, *(obj[key] for key in ("usage", "tokens") if isinstance(obj.get(key), dict))]
    return Usage(
        time=_time(obj),
        project=_text(obj, "project", "slug"),
        run=_text(obj, "run"),
        story=_text(obj, "story", "story_id", "storyId", "task_id", "taskId"),
        iteration=_integer([obj], "iteration", "iter", highest=MAX_COUNT),
        cost=_cost(obj),
        input_tokens=_integer(tokens, "input_tokens", "inputTokens", highest=MAX_TOKENS),
        output_tokens=_integer(tokens, "output_tokens", "outputTokens", highest=MAX_TOKENS),
        cache_creation_tokens=_integer(
            tokens, "cache_creation_input_tokens", "cacheCreationInputTokens", highest=MAX_TOKENS
        ),
        cache_read_tokens=_integer(tokens, "cache_read_input_tokens", "cacheReadInputTokens", highest=MAX_TOKENS),
        duration_s=_seconds(obj, ("duration_ms", "durationMs"), ("durationSeconds", "duration_seconds")),
        duration_api_s=_seconds(obj, ("duration_api_ms", "durationApiMs"), ()),
        num_turns=_integer([obj], "num_turns", "numTurns", highest=MAX_COUNT),
        is_error=is_error,
        subtype=subtype,
        status=status,
        exit_code=exit_code,
        session_id=_text(obj, "session_id", "sessionId", is_identity=True),
        model=_text(obj, "model") or _main_model(obj),
        failed=failed,
        rate_limited=_boolean(obj, "rate_limited") or (failed and is_quota(error_text(obj))),
    )


def error_text(obj: Mapping[str, Any]) -> str:
    """Return what a failed record says about its failure, "" when it says nothing."""
    said = [obj.get(key) for key in ("result", "error", "message", "subtype", "status")]
    said += [part.get("message") for part in said if isinstance(part, dict)]
    said += [part.get("type") for part in said if isinstance(part, dict)]
    return "\n".join(part for part in said if isinstance(part, str))


def result_envelope(output: bytes) -> dict[str, Any] | None:
    """Return the last `{"type": "result", …}` of an agent's raw output, or None.

    It stands on a line of its own, or in a JSON array on one, or the whole output is one such document.
    """
    for line in reversed(output.split(b"\n")):
        found = _envelope_in(line.strip())
        if found is not None:
            return found
    return _envelope_in(output.strip())


def is_quota(text: str) -> bool:
    """Say whether an error's text means "come back later". Ask only about answers that failed."""
    return _QUOTA.search(text) is not None


def _envelope_in(text: bytes) -> dict[str, Any] | None:
    if not text.startswith((b"{", b"[")) or b'"result"' not in text:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    members = document if isinstance(document, list) else [document]
    for member in reversed(members):
        if isinstance(member, dict) and member.get("type") == "result":
            return member
    return None


def _first(places: Iterable[Mapping[str, Any]], names: tuple[str, ...]) -> tuple[str, Any]:
    for place in places:
        for name in names:
            if place.get(name) is not None:
                return name, place[name]
    return "", None


def _number(name: str, value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{name} is not a number")  # noqa: TRY004
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is not finite")
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise ValueError(f"{name} is not finite")
    return number


def _within(name: str, number: Decimal, lowest: Decimal | int, highest: Decimal | int) -> Decimal:
    if number < lowest:
        raise ValueError(f"{name} is negative" if lowest == 0 else f"{name} is absurdly small")
    if number > highest:
        raise ValueError(f"{name} is absurdly large")
    return number


def _cost(obj: Mapping[str, Any]) -> Decimal | None:
    name, value = _first([obj], ("total_cost_usd", "totalCostUsd", "cost_usd", "cost", "costUSD"))
    if value is None:
        return None
    # Decimals are often written as text, because JSON has no other exact way.
    if isinstance(value, str) and _DECIMAL_TEXT.fullmatch(value):
        value = Decimal(value)
    return _within(name, _number(name, value), 0, MAX_COST_USD)


def _integer(places: Iterable[Mapping[str, Any]], *names: str, highest: int, lowest: int = 0) -> int | None:
    name, value = _first(places, names)
    if value is None:
        return None
    if type(value) is int and lowest <= value <= highest:
        return value
    number = _within(name, _number(name, value), lowest, highest)
    if number != int(number):
        raise ValueError(f"{name} is not a whole number")
    return int(number)


def _seconds(obj: Mapping[str, Any], in_ms: tuple[str, ...], in_s: tuple[str, ...]) -> float | None:
    for names, unit in ((in_ms, 1000), (in_s, 1)):
        name, value = _first([obj], names)
        if value is not None:
            return float(_within(name, _number(name, value), 0, MAX_SECONDS * unit) / unit)
    return None


def _text(obj: Mapping[str, Any], *names: str, is_identity: bool = False) -> str | None:
    name, value = _first([obj], names)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(_within(name, _number(name, value), -MAX_TOKENS, MAX_TOKENS))
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")  # noqa: TRY004
    if is_identity and len(value) > MAX_TEXT:
        raise ValueError(f"{name} is longer than {MAX_TEXT} characters")
    return value[:MAX_TEXT] or None


def _boolean(obj: Mapping[str, Any], *names: str) -> bool | None:
    name, value = _first([obj], names)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} is neither true nor false")
    return value


def _main_model(obj: Mapping[str, Any]) -> str | None:
    """Return the dearest model of an envelope's `modelUsage`, else its first."""
    models = obj.get("modelUsage")
    if not isinstance(models, dict) or not models:
        return None

    def price(name: str) -> float:
        spent = models[name].get("costUSD") if isinstance(models[name], dict) else None
        # Compared before anything is converted: an integer of 400 digits is no float.
        return spent if isinstance(spent, int | float) and 0 <= spent <= MAX_COST_USD else 0

    return str(max(models, key=price))[:MAX_TEXT] or None


def _time(obj: Mapping[str, Any]) -> datetime | None:
    name, value = _first([obj], ("ts", "timestamp", "date"))
    if value is None:
        return None
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            # A time without an offset is read as UTC: it has to mean something, the same thing everywhere.
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        else:
            number = float(_number(name, value))
            moment = datetime.fromtimestamp(number / 1000 if number >= 1e11 else number, UTC)
    except (ValueError, OverflowError, OSError, InvalidOperation):
        raise ValueError(f"{name} is not a time") from None
    if not EARLIEST <= moment < LATEST:
        raise ValueError(f"{name} is absurd: {moment.year}")
    return moment
