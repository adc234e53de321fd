"""Why a rollback is not done: a code, a sentence for a person, and what belongs to it."""

from collections.abc import Iterable
from typing import Any

# Of spec/projects.md, section 5, in its order; beside them stand those that real repositories need.
ORDER = (
    *("git-too-old", "not-a-git-repository", "other-owner", "unsafe-file", "unborn-branch", "head-moved"),
    *("unknown-commit", "not-an-ancestor", "root-commit", "merge-commit", "no-such-parent", "empty-commit"),
    # A rebase detaches HEAD: that it is under way says more.
    *("operation-in-progress", "detached-head", "branch-elsewhere", "index-locked", "already-rolled-back"),
    *("shallow-clone", "partial-clone", "sparse-checkout", "submodule-change", "filter-change"),
    *("conflict", "would-overwrite", "hidden-changes", "dirty-tree", "story-unknown", "git-failed"),
)
SHOWN_PATHS = 200


class Refused(Exception):
    """A rollback is not done: `code` (kebab), `detail` (one sentence), `extra` (plain JSON), HTTP `status`."""

    def __init__(self, code: str, detail: str, extra: dict[str, Any] | None = None) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.extra = extra or {}
        self.status = 400 if code == "not-a-git-repository" else 409

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


def over_paths(code: str, sentence: str, paths: Iterable[bytes]) -> Refused:
    """Return a refusal that lists paths: `extra` has the first SHOWN_PATHS of them and their `total`."""
    found = sorted(set(paths))
    shown = [shown_path(path) for path in found[:SHOWN_PATHS]]
    return Refused(code, f"{sentence}: {_some(shown, len(found))}.", {"paths": shown, "total": len(found)})


def in_order(refusals: Iterable[Refused]) -> tuple[Refused, ...]:
    """Return the refusals in the order of ORDER; unknown codes come last."""
    return tuple(sorted(refusals, key=lambda one: ORDER.index(one.code) if one.code in ORDER else len(ORDER)))


def shown_path(path: bytes) -> str:
    """Return a path for a person's eyes: what is not UTF-8 becomes `\\xNN`."""
    return path.decode("utf-8", "backslashreplace")


def _some(shown: list[str], total: int) -> str:
    named = ", ".join(ascii(path)[1:-1] if not path.isprintable() else path for path in shown[:3])
    return named if total <= 3 else f"{named} and {total - 3} more"
