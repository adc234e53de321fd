"""Undo a commit without losing a byte: look, build the result, save, carry out; after a crash, resume.

A pure leaf: it knows no Django and no settings. It never resets, never runs a program that the repository names, and
leaves the loop's own files alone. Rules: spec/projects.md, section 5.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from projects import git
from projects.rollback.carrying import carry_out, ignore, resume, save, undo
from projects.rollback.examination import Examination, failed, rolled_back
from projects.rollback.plan import FileChange, Plan, Preview, Wanted
from projects.rollback.refusal import Refused, in_order
from projects.rollback.repository import Repository, open_repository, sweep_scratch
from projects.rollback.trees import recent

__all__ = [
    "FileChange",
    "Plan",
    "Preview",
    "Refused",
    "Wanted",
    "build",
    "carry_out",
    "ignore",
    "preview",
    "resume",
    "rolled_back",
    "save",
    "sweep_scratch",
    "undo",
]

# So many commits are offered.
RECENT = 30


def preview(
    root: Path, prd: Path | None, wanted: Wanted, *, own_story: str = "", scratch: Path | None = None
) -> Preview:
    """Return what a rollback would do and everything that stands against it; changes nothing and never raises Refused.

    `prd` is prd.json's path relative to `root`, `own_story` our own record of the commit's story. Indexes and objects
    are written to a folder in `scratch`, made when missing (None = the system's place); what a killed process leaves
    there is for `sweep_scratch`. What could not be told because git failed, did not end in time or printed too much is
    the blocker `git-failed`.
    """
    try:
        repository = open_repository(root)
        with repository.aside(scratch) as (aside, folder):
            seen = Examination(aside, folder, prd, wanted, own_story=own_story, at=datetime.now(UTC)).seen
            return replace(seen, recent=recent(aside, seen.head, RECENT)) if seen.head else seen
    except Refused as refusal:
        return Preview(blockers=in_order([refusal]))
    except (git.GitError, OSError) as error:
        return Preview(blockers=(failed(error),))


def build(
    root: Path,
    prd: Path | None,
    wanted: Wanted,
    *,
    own_story: str = "",
    at: datetime,
    scratch: Path | None = None,
) -> Plan:
    """Write the commit that undoes another, reachable from nowhere yet, and return the plan; `at` is aware.

    The other arguments as in `preview`. Raises Refused with the first reason against it, and git.GitError.
    """
    repository = open_repository(root)
    with repository.aside(scratch) as (aside, folder):
        examined = Examination(aside, folder, prd, wanted, own_story=own_story, at=at)
        if examined.plan is None:
            raise examined.seen.blockers[0]
        _bring_home(repository, aside, examined.plan)
        return examined.plan


def _bring_home(repository: Repository, aside: Repository, plan: Plan) -> None:
    """Copy the objects of the new commit that only the temporary folder holds."""
    wanted = f"{plan.new}\n^{plan.head}\n".encode()
    packed = aside.git("pack-objects", "--revs", "--local", "--stdout", "-q", input=wanted)
    repository.git("unpack-objects", "-q", input=packed)
