"""Read usage.jsonl onward from where it was left: whole lines, a bounded batch at a time (spec: projects.md 6).

What tells one entry from another, `UsageEntry.key`, is made here:

* `session:<id>/<iteration>` of a record that names its session: the first line about it wins, whichever file it is in.
* `line:<hash>/<n>` of any other: the n-th line of that text, counted from the top of the file. A file that is read
  again (restored, copied, touched by an editor) numbers its lines alike, so that nothing counts twice; two equal lines
  of one file are n = 1 and 2 and both count. After a rotation a line that the old file had too counts as the old one:
  with a time in it, as every loop writes it, there is none.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from projects import ralph
from projects.importer.observe import Spent, _mark, _settled, moment
from projects.models import Project, UsageEntry
from projects.ralph.text import one_line
from projects.usage import Usage, parse_record

NAME = "usage.jsonl"
BATCH_LINES = 1000
BATCH_BYTES = 1024 * 1024
# Of a line without an end this much is passed over at one look; the next look goes on.
SKIPPED_BYTES = 64 * 1024 * 1024
CHUNK = 256 * 1024
HEAD_BYTES = 1024
TAIL_BYTES = 256
KEY_LOOKUP = 500
SMALLEST = Decimal("1e-9")
PLAIN_SESSION = 64
NO_STATE: dict[str, Any] = {"offset": 0, "lines": 0, "rejected": 0, "why": "", "skipping": False}


@dataclass(slots=True)
class _Line:
    text: bytes
    usage: Usage


def look(project: Project, folder: Path, fingerprints: dict[str, Any]) -> Spent:
    """Read the next batch of a project's usage.jsonl in `folder` (relative) and set `fingerprints["usage"]`.

    Reads the database only to number lines that were read before. Raises nothing for what the file may be: why it
    cannot be read is told in `fingerprints["usage"]["problem"]`.
    """
    root, before = Path(project.path), fingerprints.get("usage") or {}
    mark = _mark(root / folder / NAME)
    if mark is None:
        # What was spent stays spent; a file that comes back is read from its beginning.
        fingerprints.pop("usage", None)
        return Spent()
    if before.get("mark") == mark:
        return Spent()
    try:
        descriptor = ralph.open_inside(root, folder / NAME)
    except FileNotFoundError:
        return Spent()
    except OSError as error:
        fingerprints["usage"] = {**NO_STATE, "mark": _settled(mark), "problem": f"{error}"[:300]}
        return Spent()
    try:
        state = _resumed(descriptor, before)
        spent = _read(descriptor, state, project, moment(mark[1]))
        # With lines left the file is not done with, changed or not.
        unfinished = spent.more or (state["skipping"] and state["offset"] < mark[0])
        state["mark"] = None if unfinished else _settled(mark)
        state["head"] = _digest(descriptor, 0, min(HEAD_BYTES, state["offset"]))
        state["tail"] = _digest(descriptor, *_tail(state["offset"]))
        fingerprints["usage"] = state
    except OSError as error:
        fingerprints["usage"] = {**NO_STATE, "mark": None, "problem": f"it cannot be read: {error.strerror}"}
        return Spent()
    finally:
        os.close(descriptor)
    return spent


def save(project: Project, entries: list[dict[str, Any]]) -> None:
    """Write the entries of a batch. Inside `writing()`."""
    UsageEntry.objects.bulk_create((UsageEntry(project=project, **entry) for entry in entries), ignore_conflicts=True)


def warnings(fingerprints: dict[str, Any]) -> list[str]:
    """Return what a project's page says about a usage.jsonl that could not be read, or not all of it."""
    state = fingerprints.get("usage") or {}
    if problem := state.get("problem"):
        return [f"{NAME} is not counted: {problem}."]
    if not (rejected := state.get("rejected")):
        return []
    counted = "1 line is" if rejected == 1 else f"{rejected} lines are"
    return [f"{NAME}: {counted} not counted; the last of them is {state['why']}."]


def is_warning(sentence: str) -> bool:
    """Say whether a project's warning is one of ours."""
    return sentence.startswith((f"{NAME}: ", f"{NAME} is not counted: "))


def _resumed(descriptor: int, before: dict[str, Any]) -> dict[str, Any]:
    """Return the state to go on from: where the last look ended, or the beginning of a file that is not that one."""
    offset = before.get("offset", 0)
    is_same = (
        0 < offset <= os.fstat(descriptor).st_size
        and before.get("head") == _digest(descriptor, 0, min(HEAD_BYTES, offset))
        and before.get("tail") == _digest(descriptor, *_tail(offset))
    )
    return {name: before[name] if is_same else value for name, value in NO_STATE.items()}


def _read(descriptor: int, state: dict[str, Any], project: Project, written_at: datetime) -> Spent:
    if state["skipping"]:
        return Spent(more=_skip(descriptor, state))
    start = state["offset"]
    block = os.pread(descriptor, BATCH_BYTES + 1, start)
    end = block.rfind(b"\n", 0, BATCH_BYTES) + 1
    if not end:
        if len(block) <= BATCH_BYTES:
            return Spent()
        state["lines"] += 1
        _reject(state, "longer than 1 MiB")
        return Spent(more=_skip(descriptor, state))
    lines = block[:end].split(b"\n", BATCH_LINES)
    # What stands behind the last line end: nothing, or what is over the batch's number of lines.
    rest = lines.pop()
    state["offset"] = start + end - len(rest)
    found = list(_parsed(lines, state))
    more = bool(rest) or len(block) > BATCH_BYTES
    fresh = _fresh(descriptor, start, found, project)
    return Spent([_entry(line, key, written_at) for key, line in fresh.items()], more)


def _parsed(lines: list[bytes], state: dict[str, Any]) -> Iterator[_Line]:
    for text in lines:
        state["lines"] += 1
        line = text.removeprefix(b"\xef\xbb\xbf").strip()
        if not line:
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            _reject(state, "not JSON")
            continue
        try:
            usage = parse_record(document)
        except ValueError as reason:
            _reject(state, str(reason))
        except (ArithmeticError, RecursionError):
            _reject(state, "absurd")
        else:
            yield _Line(line, usage)


def _reject(state: dict[str, Any], why: str) -> None:
    state["rejected"] += 1
    state["why"] = f"line {state['lines']}: {why}"


def _skip(descriptor: int, state: dict[str, Any]) -> bool:
    """Pass over the rest of a line that is too long; says whether its end was found."""
    start = state["offset"]
    state["skipping"] = True
    while state["offset"] - start < SKIPPED_BYTES and (chunk := os.pread(descriptor, CHUNK, state["offset"])):
        end = chunk.find(b"\n") + 1
        state["offset"] += end or len(chunk)
        if end:
            state["skipping"] = False
            return True
    return False


def _fresh(descriptor: int, start: int, found: list[_Line], project: Project) -> dict[str, _Line]:
    """Return the lines that are not in the database yet by their keys; of two with one key the first."""
    firsts = [_session_key(line.usage) or f"line:{_hash(line.text)}/1" for line in found]
    known = _known(project, firsts)
    # A line that is not in the database cannot stand above either: only the others are looked for there.
    met = {line.text for line, key in zip(found, firsts, strict=True) if key in known and key.startswith("line:")}
    times = _count_above(descriptor, start, met) if met and start else Counter[bytes]()
    fresh: dict[str, _Line] = {}
    again: list[str] = []
    for line, first in zip(found, firsts, strict=True):
        key = first
        if first.startswith("line:"):
            times[line.text] += 1
            key = f"{first.removesuffix('1')}{times[line.text]}"
        if key not in known and key not in fresh:
            fresh[key] = line
            if key != first:
                again.append(key)
    for key in _known(project, again):
        del fresh[key]
    return fresh


def _count_above(descriptor: int, end: int, wanted: set[bytes]) -> Counter[bytes]:
    """Count how often some lines stand before the offset `end`, which is a line's beginning."""
    times: Counter[bytes] = Counter()
    place, rest = 0, b""
    while place < end and (chunk := os.pread(descriptor, min(BATCH_BYTES, end - place), place)):
        place += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        times.update(text for line in lines if (text := line.removeprefix(b"\xef\xbb\xbf").strip()) in wanted)
        # The end of a line that was too long to be read.
        rest = rest if len(rest) <= BATCH_BYTES else b"\xff"
    return times


def _known(project: Project, keys: list[str]) -> set[str]:
    if project.pk is None:
        return set()
    found: set[str] = set()
    for place in range(0, len(keys), KEY_LOOKUP):
        rows = UsageEntry.objects.filter(project=project, key__in=keys[place : place + KEY_LOOKUP])
        found.update(rows.values_list("key", flat=True))
    return found


def _session_key(usage: Usage) -> str:
    """Return the key of a record that names its session, "" of any other."""
    if not usage.session_id:
        return ""
    name = one_line(usage.session_id, PLAIN_SESSION)
    if name != usage.session_id:
        # Longer than the column, or with characters that no column holds.
        name = "#" + hashlib.sha256(usage.session_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"session:{name}/{'' if usage.iteration is None else usage.iteration}"


def _entry(line: _Line, key: str, written_at: datetime) -> dict[str, Any]:
    usage = line.usage
    return {
        "key": key,
        "at": usage.time or written_at,
        "story_key": one_line(usage.story or "", 200),
        "iteration": usage.iteration,
        "cost": None if usage.cost is None else usage.cost.quantize(SMALLEST),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_creation_tokens": usage.cache_creation_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "duration_s": usage.duration_s,
        "duration_api_s": usage.duration_api_s,
        "num_turns": usage.num_turns,
        "model": one_line(usage.model or "", 200),
        "session": one_line(usage.session_id or "", 200),
        "run": one_line(usage.run or "", 64),
        "failed": usage.failed and not usage.rate_limited,
        "rate_limited": usage.rate_limited,
    }


def _tail(offset: int) -> tuple[int, int]:
    size = min(TAIL_BYTES, offset)
    return offset - size, size


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:32]


def _digest(descriptor: int, start: int, size: int) -> str:
    return hashlib.sha256(os.pread(descriptor, size, start)).hexdigest()
