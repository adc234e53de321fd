"""What is odd in the journals of this host, the worst first: from their files, else from what was read of them."""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.db.models import Q

from projects import journal, timelines
from projects.intake.batches import mark_of
from projects.intake.places import session_place
from projects.intake.turns import unpacked
from projects.journal.auditing import QUIET_S, Audited, Finding, Told, audit_counted, finding_of, illegal, of_turn
from projects.journal.sessions import illegal_names
from projects.keeping import home_of
from projects.models import JournalFile, Tombstone, Turn
from projects.states import JournalFamily, JournalState

MOST_FINDINGS = 1_000
MOST_AUDITED = 5_000
# The page of a session reads a file up to this size for its findings; of a longer one it tells what was read of it.
READ_BYTES = 4 << 20
TURNS_TOLD = 100
# (root, session) -> (what the kernel said of the file, its findings): a file that is as it was says what it said.
_audited: OrderedDict[tuple[str, str], tuple[tuple[object, ...], Audited]] = OrderedDict()


class Audit(NamedTuple):
    """The worst findings, at most 1,000, and how many of each kind there are."""

    findings: list[Finding]
    counts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def audit(now: datetime, kind: str = "") -> Audit:
    """Return the findings of all journals on this host, of one kind or of all; those of whole files come first."""
    counts: Counter[str] = Counter()
    # By rank, so that whatever is cut is the least of it, and no more is held than is told.
    worst: dict[int, list[Finding]] = {}
    for found in _everything(now):
        counts.update(found.counts)
        for finding in found.findings:
            kept = worst.setdefault(timelines.rank(finding["kind"]), [])
            if kind in {"", finding["kind"]} and len(kept) < MOST_FINDINGS:
                kept.append(finding)
    ordered = [finding for rank in sorted(worst) for finding in worst[rank]]
    return Audit(ordered[:MOST_FINDINGS], dict(counts))


def findings_of(session_id: str, now: datetime, file: JournalFile | None) -> list[Finding]:
    """Return the findings of one session; `file` is its row. Of a file over 4 MiB only what its rows tell."""
    root = home_of(session_id)
    rewritten = _rewritten(session_id).findings if file is not None and file.generation > 1 else []
    try:
        is_long = session_place(root, session_id).stat().st_size > READ_BYTES
    except OSError:
        is_long = False
    if is_long:
        return [*rewritten, *(_of_rows(file) if file is not None else [])]
    return [*rewritten, *_audit(root, session_id, now.timestamp()).findings]


def _everything(now: datetime) -> Iterable[Audited]:
    yield _rewritten()
    deleted = set(Tombstone.objects.filter(node=settings.ANDON_NODE).values_list("root", "session_id"))
    for root in settings.ANDON_JOURNAL_ROOTS:
        if unnamed := illegal(root):
            yield Audited(unnamed, {"illegal_filename": len(illegal_names(root))})
        for session_id in journal.session_ids(root):
            if (str(root), session_id) not in deleted:
                yield _audit(root, session_id, now.timestamp())


def _rewritten(session_id: str = "") -> Audited:
    rows = JournalFile.objects.filter(family=JournalFamily.TURNS, state=JournalState.SUPERSEDED)
    rows = rows.filter(node=settings.ANDON_NODE, **({"name": session_id} if session_id else {}))
    found = [
        finding_of("journal_rewritten", row.name, f"generation {row.generation} ended after line {row.committed_line}")
        for row in rows.order_by("-pk")[: MOST_FINDINGS + 1]
    ]
    count = len(found) if len(found) <= MOST_FINDINGS else rows.count()
    return Audited(found, {"journal_rewritten": count} if found else {})


def _audit(root: Path, session_id: str, now: float) -> Audited:
    try:
        status = session_place(root, session_id).stat()
    except FileNotFoundError:
        return Audited([], {})
    except OSError:
        # It says why when it is opened.
        return audit_counted(root, session_id, now=now)
    # A tail counts as torn only once it is quiet.
    quiet, mark = now - status.st_mtime >= QUIET_S, mark_of(status)
    kept = _audited.get((str(root), session_id))
    if kept is not None and kept[0] == (mark, quiet):
        return kept[1]
    found = audit_counted(root, session_id, now=now)
    if mark and "future_timestamp" not in found.counts:
        _audited[str(root), session_id] = ((mark, quiet), found)
        while len(_audited) > MOST_AUDITED:
            _audited.popitem(last=False)
    return found


def _of_rows(file: JournalFile) -> list[Finding]:
    told = Told(file.name)
    if file.malformed:
        told.add(finding_of("malformed_event", file.name, f"{file.malformed} lines"))
    turns = Turn.objects.filter(Q(pending=True) | Q(collides=True), file=file).order_by("-first_line")
    for folded in turns.values_list("folded", flat=True)[:TURNS_TOLD]:
        for finding in of_turn(file.name, unpacked(folded)):
            told.add(finding)
    return told.all().findings
