"""Look at a project's repository and say what a rollback would do, and all that stands against it.

Nothing is written in the repository: trees, indexes and the new commit go to a temporary folder.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from projects import git, ralph
from projects.ralph.text import one_line
from projects.rollback import differences, states, story
from projects.rollback.plan import Plan, Preview, Wanted
from projects.rollback.refusal import Refused, in_order, over_paths
from projects.rollback.repository import Repository
from projects.rollback.trees import (
    GITLINK,
    Bookkeeping,
    Change,
    Commit,
    changes,
    read_blob,
    read_commits,
    undoing_tree,
    write_commit,
)
from projects.rollback.worktree import in_the_way

T = TypeVar("T")

UNDOES = "Andon-Rolls-Back"
STORY = "Andon-Story"
_OURS = re.compile(rf"^{UNDOES}: ([0-9a-f]{{40,64}})$", re.MULTILINE)
_HEXADECIMAL = re.compile("[0-9a-fA-F]{4,64}")


class Examination:
    """One look at a repository that writes aside; `seen` and `plan` tell the outcome, `plan` None = refused."""

    def __init__(
        self, repository: Repository, folder: Path, prd: Path | None, wanted: Wanted, *, own_story: str, at: datetime
    ) -> None:
        self.repository = repository
        self.folder = folder
        self.prd = prd
        self.wanted = wanted
        self.own_story = own_story
        self.at = at
        self.bookkeeping = Bookkeeping(prd)
        self.seen = Preview()
        self.plan: Plan | None = None
        self._blockers: list[Refused] = []
        self._gave_up = False
        self._examine()
        self.seen = replace(self.seen, blockers=in_order(self._blockers))

    def _examine(self) -> None:
        head = self._try(self._head)
        if head is None:
            return
        for check in states.CHECKS:
            self._try(lambda check=check: check(self.repository, self.seen.branch))  # type: ignore[misc]
        commit = self._try(lambda: self._commit(head))
        tree, found = "", None
        if commit is not None:
            parent = self._try(lambda: self._parent(head, commit))
            if parent is not None:
                tree = self._try(lambda: self._tree(head, commit, parent)) or ""
        if tree:
            found = self._try(lambda: self._changes(head, tree))
        self._try(lambda: states.refuse_dirt(self.repository, self.folder, self.bookkeeping, found or []))
        if commit is not None:
            if not any(one.code == "already-rolled-back" for one in self._blockers):
                self._try(lambda: self._story(commit))
            self._try(lambda: self._upstreams(commit))
        if commit is not None and found is not None and not self._blockers:
            self._try(lambda: self._plan(head, commit, tree, found))

    def _try(self, step: Callable[[], T]) -> T | None:
        """Take a step; what it refuses is kept, and None given. After a git that was given up on none is taken."""
        if self._gave_up:
            return None
        try:
            return step()
        except Refused as refusal:
            self._blockers.append(refusal)
        except OSError as error:
            self._blockers.append(failed(error))
        except git.GitError as error:
            self._gave_up = error.returncode is None
            # History that is not here is the reason already told.
            if not {"shallow-clone", "partial-clone"} & {one.code for one in self._blockers}:
                self._blockers.append(failed(error))
        return None

    def _head(self) -> Commit:
        branch = ""
        try:
            branch = self.repository.line("symbolic-ref", "--quiet", "HEAD")
        except git.GitError as error:
            if error.returncode != 1:
                raise
        try:
            sha = self.repository.line("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        except git.GitError as error:
            if error.returncode != 1:
                raise
            raise Refused("unborn-branch", "The branch has no commit yet.") from None
        self.seen = replace(self.seen, head=sha, branch=branch.removeprefix("refs/heads/"))
        expected = self.wanted.expected_head.lower()
        if expected and not (_HEXADECIMAL.fullmatch(expected) and sha.startswith(expected)):
            now_at = Refused("head-moved", f"HEAD is at {sha[:12]}, no longer at what you saw.", {"head": sha})
            self._blockers.append(now_at)
        return read_commits(self.repository, sha)[0]

    def _commit(self, head: Commit) -> Commit:
        commit = head
        if self.wanted.commit:
            commit = self._named(self.wanted.commit)
        self.seen = replace(
            self.seen,
            commit=commit.sha,
            parents=commit.parents,
            subject=commit.subject,
            author=commit.author,
            at=commit.at,
        )
        if commit.sha != head.sha:
            try:
                self.repository.git("merge-base", "--is-ancestor", commit.sha, head.sha)
            except git.GitError as error:
                if error.returncode != 1:
                    raise
                raise Refused("not-an-ancestor", f"{commit.sha[:12]} is not in the history of HEAD.") from None
        return commit

    def _named(self, name: str) -> Commit:
        unknown = Refused("unknown-commit", f"There is no commit {one_line(name, 64)} here.")
        if not _HEXADECIMAL.fullmatch(name):
            raise unknown
        try:
            sha = self.repository.line("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        except git.GitError as error:
            if error.returncode is None:
                raise
            raise unknown from None
        return read_commits(self.repository, sha)[0]

    def _parent(self, head: Commit, commit: Commit) -> Commit:
        undone = rolled_back(head)
        if undone and commit.sha in {head.sha, undone}:
            raise Refused("already-rolled-back", f"HEAD is the rollback of {undone[:12]}.", {"commit": undone})
        number = self.wanted.mainline
        if not commit.parents:
            raise Refused("root-commit", "The first commit has nothing before it to go back to.")
        if number is None and len(commit.parents) > 1:
            many = f"It is a merge of {len(commit.parents)} parents: say which one is the main line."
            raise Refused("merge-commit", many, {"parents": list(commit.parents)})
        if number is not None and not 1 <= number <= len(commit.parents):
            raise Refused("no-such-parent", f"The commit has {len(commit.parents)} parents, not {number}.")
        return read_commits(self.repository, commit.parents[(number or 1) - 1])[0]

    def _tree(self, head: Commit, commit: Commit, parent: Commit) -> str:
        tree = undoing_tree(
            self.repository, self.folder, head=head, commit=commit, parent=parent, bookkeeping=self.bookkeeping
        )
        if tree == head.tree:
            raise Refused("empty-commit", "Beside the loop's own files it changed nothing that is still there.")
        return tree

    def _changes(self, head: Commit, tree: str) -> list[Change]:
        found = changes(self.repository, head.tree, tree)
        self.seen = replace(self.seen, **differences.shown(self.repository, head.tree, tree))
        own = [change.path for change in found if change.path in self.bookkeeping]
        if own:
            raise over_paths("conflict", "The loop's own files stand where the code was", own)
        modules = [c.path for c in found if any(e and e.mode == GITLINK for e in (c.old, c.new))]
        if modules:
            self._blockers.append(over_paths("submodule-change", "It changes submodules", modules))
        self._try(lambda: states.refuse_filters(self.repository, self.folder, tree, found))
        going = {change.path for change in found if change.new is None}
        blocked = in_the_way(self.repository.root, [c.path for c in found if c.old is None], going)
        if blocked:
            self._blockers.append(over_paths("would-overwrite", "Files lie where others would come back", blocked))
        return found

    def _story(self, commit: Commit) -> None:
        prd = self.prd
        if prd is None:
            return
        chosen = story.choose(
            subject=commit.subject,
            named=self.wanted.story,
            own=self.own_story,
            head_document=self._document(commit.sha),
            disk_document=_on_disk(self.repository.root, prd),
            parent_document=self._document(commit.parents[0]) if commit.parents else None,
        )
        told = {"story": chosen.story, "story_title": chosen.title, "candidates": chosen.candidates}
        self.seen = replace(self.seen, **told)  # type: ignore[arg-type]
        if not chosen.story:
            detail = "Nothing tells which story the commit belongs to: choose one."
            raise Refused("story-unknown", detail, {"candidates": list(chosen.candidates)})

    def _document(self, commit: str) -> bytes | None:
        return read_blob(self.repository, f"{commit}:{self.prd}", ralph.MAX_BYTES)

    def _upstreams(self, commit: Commit) -> None:
        containing = ("for-each-ref", f"--contains={commit.sha}", "--format=%(symref)%00%(refname:short)")
        lines = [line.split("\0") for line in self.repository.line(*containing, "refs/remotes").splitlines()]
        names = tuple(one_line(line[1], 200) for line in lines if len(line) == 2 and not line[0])
        self.seen = replace(self.seen, pushed=bool(names), upstreams=names[:50])

    def _plan(self, head: Commit, commit: Commit, tree: str, found: list[Change]) -> None:
        subject = commit.subject or commit.sha[:12]
        message = _message(commit, subject, one_line(self.seen.story, 200))
        new = write_commit(self.repository, tree, [head.sha], message, self.at)
        self.plan = Plan(
            head=head.sha,
            new=new,
            branch=f"refs/heads/{self.seen.branch}",
            commit=commit.sha,
            subject=subject,
            story=self.seen.story,
            message=message,
            backup_ref=f"refs/andon/rollback/{self.at:%Y%m%dT%H%M%S}-{head.sha[:12]}",
            paths=tuple(change.path.decode("utf-8", "surrogateescape") for change in found),
            bookkeeping=tuple(name.decode("utf-8", "surrogateescape") for name in self.bookkeeping.names),
        )


def rolled_back(commit: Commit) -> str:
    """Return the commit that this one of ours has undone, or ""."""
    found = _OURS.search(commit.message.rstrip().rpartition("\n\n")[2])
    return found[1] if found and (commit.author, commit.email) == (git.NAME, git.EMAIL) else ""


def failed(error: git.GitError | OSError) -> Refused:
    """Return the refusal for a git that could not answer."""
    return Refused("git-failed", one_line(f"git could not tell: {error}", 500))


def _on_disk(root: Path, prd: Path) -> bytes | None:
    try:
        return ralph.read_inside(root, prd, ralph.MAX_BYTES)
    except OSError:
        return None


def _message(commit: Commit, subject: str, opened: str) -> str:
    what = [f"This undoes {commit.sha}."]
    if opened:
        what.append(f"The story {opened} is open again.")
    trailers = [f"{UNDOES}: {commit.sha}"] + ([f"{STORY}: {opened}"] if opened else [])
    return "\n".join([f'Roll back "{subject}"', "", *what, "The loop's own files stay as they are.", "", *trailers, ""])
