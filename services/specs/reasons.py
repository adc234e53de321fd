"""The exact texts by which a spec file is refused; callers key on them (spec/services.md, section 1)."""

import json

SIDECAR_MISSING = "sidecar-missing"
SPECS_MISSING = "specs-missing"
SPECS_EMPTY = "specs-empty"
NOT_AN_OBJECT = "not-an-object"

INVALID_WORKDIR = "invalid-workdir: "

# Enough for every text that is cut off by a bound of its own; keys and hosts have none.
SHOWN = 1000


class Refused(Exception):
    """A check failed; the argument is the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def shown(value: object) -> str:
    """Return a JSON value as it may stand in a reason: a text as it is, anything else as compact JSON.

    What does not print (control characters, line ends, bidirectional marks, lone surrogates) is escaped, so that
    a reason is one line which every database holds; at most 1000 characters.
    """
    if isinstance(value, str):
        text = value
    elif value is None:
        text = "none"
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError):
            text = type(value).__name__
    text = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text[: SHOWN + 1]
    )
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def json_parse(message: str) -> str:
    """It is not JSON; `message` says what and where."""
    return f"json-parse: {shown(message)}"


def unreadable(why: str) -> str:
    """There is something, and it could not or must not be read; never said of what does not exist."""
    return f"unreadable: {why}"


def larger_than(limit: int) -> str:
    """Why a file or a body of more than `limit` bytes is unreadable."""
    return f"larger than {limit} bytes"


def written_by_mismatch(expected: str, got: str | None) -> str:
    """The file does not say that the agent in whose folder it lies wrote it."""
    return f"written-by-mismatch (expected {shown(expected)}, got {shown(got)})"


def wi_id_mismatch(expected: str, got: str | None) -> str:
    """The file does not name the work item of the agent's run."""
    return f"wi-id-mismatch (expected {shown(expected)}, got {shown(got)})"


def name_already_active(name: str) -> str:
    """Another owner's live service of the project has the name."""
    return f"name-already-active ({shown(name)})"


def already_running(name: str) -> str:
    """A warning: the same service lives already and is kept."""
    return f"already-running ({shown(name)})"


def port_conflict(port: int, holder: str) -> str:
    """A live service declares the port, or something listens on it."""
    return f"port-conflict ({port}: {shown(holder)})"


def quota_exceeded(limit: int) -> str:
    """There would be more than `limit` live services."""
    return f"quota-exceeded ({limit})"
