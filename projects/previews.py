"""What a rollback would do, for pages and REST: git is only read, as other files of a project are."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from projects import git, history, queries, ralph, rollback
from projects.errors import Rejected
from projects.models import Project


@dataclass(frozen=True, slots=True)
class Look:
    """A preview and all that stands in its way, in the order in which it would be refused."""

    slug: str
    seen: rollback.Preview
    blockers: tuple[rollback.Refused, ...]
    is_running: bool

    @property
    def can_do(self) -> bool:
        return not self.blockers

    @property
    def can_stop_and_do(self) -> bool:
        """Say whether only the running loop stands in the way."""
        return self.is_running and [each.code for each in self.blockers] == ["loop-running"]

    @property
    def lacks_story(self) -> bool:
        """Say whether it can be done once somebody names the story."""
        return bool(self.seen.candidates) and {each.code for each in self.blockers} <= {"story-unknown", "loop-running"}


def look(project: Project, wanted: Mapping[str, Any], *, is_running: bool) -> Look:
    """Look at what rolling back would do; `wanted` as in `rollback.Wanted`.

    Raises Rejected `not-a-git-repository` where there is nothing to look at.
    """
    queries.need_here(project)
    root = Path(project.path)
    prd = prd_of(project.slug, root)
    if prd is None:
        raise Rejected("invalid-project-slug", f"{project.slug} has no prd.json, so there is no story to roll back.")
    asked = rollback.Wanted(**wanted)
    seen = rollback.preview(root, prd, asked, own_story=own_story(root, asked), scratch=scratch())
    if seen.blockers and seen.blockers[0].status == Rejected.status:
        raise Rejected(seen.blockers[0].code, seen.blockers[0].detail)
    running = (loop_running(project.slug),) if is_running else ()
    return Look(project.slug, seen, (*running, *seen.blockers), is_running)


def scratch() -> Path:
    """Return where git's temporary objects go; what a killed process leaves there is removed when a worker starts."""
    return Path(settings.ANDON_HOME) / "scratch"


def prd_of(slug: str, root: Path) -> Path | None:
    """Return where prd.json lies, or lay when it was last read: the files beside it are never rolled back."""
    if (prd := ralph.find_prd(root)) is not None:
        return prd
    known = Project.objects.filter(slug=slug).values_list("prd_path", flat=True).first()
    return Path(known) if known else None


def mainline(text: str) -> int | None:
    """Return the number of a parent from an address, None for ""; Rejected `mainline-invalid` for anything else."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 3 and 1 <= int(text) <= 64):
        raise Rejected("mainline-invalid", "mainline is the number of a parent, from 1.")
    return int(text)


def own_story(root: Path, wanted: rollback.Wanted) -> str:
    """Return the story that our runner recorded for the commit that is to be undone, "" when it did not."""
    if not all(sign in string.hexdigits for sign in wanted.commit):
        return ""
    try:
        commit = git.run(["rev-parse", "--verify", "--quiet", f"{wanted.commit or 'HEAD'}^{{commit}}"], root)
    except git.GitError:
        return ""
    return history.story_of_commit(root, commit.decode("ascii", "replace").strip())


def loop_running(slug: str) -> rollback.Refused:
    return rollback.Refused("loop-running", f"A loop runs in {slug}. Stop it first, or stop and roll back.")


def as_document(found: Look) -> dict[str, Any]:
    """Return a look as REST shows it."""
    seen = found.seen
    return {
        "slug": found.slug,
        "head": seen.head,
        "branch": seen.branch.removeprefix("refs/heads/") or None,
        "commit": seen.commit,
        "subject": shown(seen.subject),
        "author": shown(seen.author),
        "at": seen.at,
        "story": shown(seen.story) or None,
        "story_title": shown(seen.story_title) or None,
        "candidates": [shown(each) for each in seen.candidates],
        "files": [
            {
                "path": shown(each.path),
                "old_path": shown(each.old_path) or None,
                "status": each.status,
                "added": each.added,
                "removed": each.removed,
            }
            for each in seen.files
        ],
        "files_total": seen.files_total,
        "added": seen.added,
        "removed": seen.removed,
        "diffstat": shown(seen.stat),
        "pushed": seen.pushed,
        "upstreams": [shown(each) for each in seen.upstreams],
        "running": found.is_running,
        "blockers": [{"code": each.code, "detail": shown(each.detail), **plain(each.extra)} for each in found.blockers],
    }


def plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return what belongs to a refusal with texts that can be encoded."""
    return {
        name: [shown(str(each)) for each in value] if isinstance(value, list | tuple) else value
        for name, value in extra.items()
    }


def shown(text: str) -> str:
    """Return a text of a repository as UTF-8 holds it: file names may be any bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
