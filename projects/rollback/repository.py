"""A project's own repository, asked with nothing of its configuration or the user's able to start a program.

The configurations of the user and of the system are not read; what the repository's own says about filters, merge
drivers, hooks and monitors is overridden; replace refs, grafts and the network are switched off.
"""

import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from projects import git
from projects.rollback import reading
from projects.rollback.refusal import Refused

OLDEST_GIT = (2, 38)
_SCRATCH = "andon-rollback-"
_SMALL = 1024 * 1024
# git opens them by itself and would wait for a pipe; of these only the index may never be a link.
_OWN_FILES = ("index", "HEAD", "commondir", "gitdir", "config.worktree")
_COMMON_FILES = ("config", "packed-refs", "shallow", "info/attributes", "info/exclude", "objects/info/alternates")
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_GRAFT_FILE": os.devnull,
    "GIT_LITERAL_PATHSPECS": "1",
}
_FIXED = (
    ("core.attributesFile", os.devnull),
    ("core.excludesFile", os.devnull),
    ("core.ignoreCase", "false"),
    ("core.symlinks", "true"),
    # A copy of a split index is written whole.
    ("core.splitIndex", "false"),
    ("core.untrackedCache", "false"),
    ("core.commitGraph", "false"),
    ("core.quotePath", "false"),
    ("core.fsync", "all"),
    ("core.fsyncMethod", "batch"),
    ("i18n.commitEncoding", "utf-8"),
    ("merge.renames", "true"),
    ("merge.directoryRenames", "false"),
    ("merge.default", "text"),
    ("merge.renormalize", "false"),
    ("diff.renameLimit", "1000"),
)
# An empty filter is none. A merge driver that says no is a conflict; an empty one would silently keep one side.
_PROGRAMS = {
    ("filter", "clean"): "",
    ("filter", "smudge"): "",
    ("filter", "process"): "",
    ("filter", "required"): "false",
    ("merge", "driver"): "false",
}


@dataclass(frozen=True)
class Repository:
    """A repository whose work tree is `root`; `git_dir` is the work tree's own, `common_dir` is shared by all."""

    root: Path
    git_dir: Path
    common_dir: Path
    objects: Path
    shallow: bool
    config: Mapping[str, str]
    env: Mapping[str, str]

    @property
    def index(self) -> Path:
        return self.git_dir / "index"

    @property
    def index_lock(self) -> Path:
        return self.git_dir / "index.lock"

    def git(
        self,
        *args: str,
        index: Path | None = None,
        input: bytes | None = None,  # noqa: A002 - subprocess names it so
        keep: Sequence[int] = (),
        limit: int = git.STDOUT_BYTES,
    ) -> bytes:
        """Run git here, on another index file if one is given, for at most `limit` bytes. Raises git.GitError."""
        env = self.env if index is None else {**self.env, "GIT_INDEX_FILE": str(index)}
        return git.run(args, self.root, env=env, input=input, keep=keep, limit=limit)

    def line(self, *args: str, index: Path | None = None) -> str:
        """Run git here and return what it prints, decoded and stripped."""
        return self.git(*args, index=index).decode("utf-8", "replace").strip()

    def is_set(self, name: str) -> bool:
        """Return whether the repository's configuration sets this name to something that is not false."""
        return self.config.get(name, "false").lower() not in {"", "0", "no", "off", "false"}

    @contextmanager
    def aside(self, scratch: Path | None) -> Iterator[tuple["Repository", Path]]:
        """Give the same repository, writing its new objects to a temporary folder; and that folder, for indexes.

        It lies in `scratch`, made when missing; None = where the system has such folders.
        """
        if scratch is not None:
            scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=_SCRATCH, dir=scratch) as name:
            folder = Path(name)
            (folder / "objects").mkdir()
            env = {
                **self.env,
                "GIT_OBJECT_DIRECTORY": str(folder / "objects"),
                "GIT_ALTERNATE_OBJECT_DIRECTORIES": _quoted(self.objects),
            }
            yield replace(self, env=env), folder


def open_repository(root: Path) -> Repository:
    """Return the repository that lies in `root` itself; an outer one does not count.

    Raises Refused (git-too-old, not-a-git-repository, other-owner, unsafe-file) and git.GitError.
    """
    if _git_version() < OLDEST_GIT:
        raise Refused("git-too-old", f"git {OLDEST_GIT[0]}.{OLDEST_GIT[1]} or newer is needed.")
    git_dir = _git_dir(root)
    for folder in (root, git_dir):
        if folder.stat().st_uid != os.geteuid():
            raise Refused("other-owner", f"{folder.name} belongs to another user than the one who runs Andon.")
    _refuse_odd_files(git_dir, _OWN_FILES + _COMMON_FILES)
    env = {**_ENVIRONMENT, "GIT_DIR": str(git_dir), "GIT_WORK_TREE": str(root.resolve())}
    try:
        said = git.run(["rev-parse", "--path-format=absolute", "--git-common-dir"], root, env=env)
    except git.GitError as error:
        if "not a git repository" in error.stderr.lower():
            raise _none() from None
        raise
    common_dir = Path(os.fsdecode(said.removesuffix(b"\n"))).resolve()
    _refuse_odd_files(common_dir, _COMMON_FILES)
    config = _parsed(git.run(["config", "--list", "-z"], root, env=env, limit=_SMALL))
    return Repository(
        root=root,
        git_dir=git_dir,
        common_dir=common_dir,
        objects=common_dir / "objects",
        shallow=(common_dir / "shallow").exists(),
        config=config,
        env={**env, **_overriding(config)},
    )


def sweep_scratch(folder: Path, older_than_s: float) -> int:
    """Remove what killed processes have left in the folder `scratch` of `preview` and `build`; return how many.

    A rollback at work takes minutes at most. What cannot be removed stays.
    """
    removed = 0
    for left in sorted(folder.glob(f"{_SCRATCH}*")):
        with suppress(OSError):
            status = left.lstat()
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if is_ours and time.time() - status.st_mtime > older_than_s:
                shutil.rmtree(left)
                removed += 1
    return removed


@cache
def _git_version() -> tuple[int, int]:
    return git.version(Path("/"))


def _git_dir(root: Path) -> Path:
    """Return the resolved `.git` of `root`, or what its `.git` file names, unless that is another tree's."""
    dot_git = root.resolve() / ".git"
    try:
        kind = stat.S_IFMT(dot_git.lstat().st_mode)
        if kind == stat.S_IFDIR:
            return dot_git
        if kind != stat.S_IFREG:
            raise _none()
        text = reading.read(dot_git, 5000)
        named = Path(os.fsdecode(text.removeprefix(b"gitdir:").strip(b" \r\n")))
        git_dir = (dot_git.parent / named).resolve(strict=True)
        if not text.startswith(b"gitdir:") or not git_dir.is_dir():
            raise _none()
        back = git_dir / "gitdir"
        # The main tree of another project, or a work tree that lies elsewhere.
        if git_dir.name == ".git" or (
            back.exists() and (git_dir / os.fsdecode(reading.read(back, 5000).strip())).resolve() != dot_git
        ):
            raise _none("Its .git file names the repository of another directory.")
    except (OSError, ValueError, RuntimeError):
        raise _none() from None
    return git_dir


def _refuse_odd_files(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        path = folder / name
        with suppress(FileNotFoundError, NotADirectoryError):
            status = path.lstat() if name == "index" else path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise reading.unsafe(path)
            if name == "index" and status.st_size > reading.INDEX_BYTES:
                raise Refused("unsafe-file", f"The index is larger than {reading.INDEX_BYTES} bytes.")


def _none(detail: str = "There is no git repository in the project's directory itself.") -> Refused:
    return Refused("not-a-git-repository", detail)


def _parsed(listed: bytes) -> dict[str, str]:
    """Return the last value of each name of `git config --list -z`; one without a value is true."""
    pairs = (entry.partition(b"\n") for entry in listed.split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) if has_value else "true" for name, has_value, value in pairs}


def _overriding(config: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that overrides every setting of the repository that names a program."""
    pairs = list(_FIXED)
    for name in config:
        section, _, rest = name.partition(".")
        driver = rest.rpartition(".")[0]
        if driver and section in {"filter", "merge"}:
            pairs += [(f"{section}.{driver}.{k}", value) for (s, k), value in _PROGRAMS.items() if s == section]
    pairs = list(dict(pairs).items())
    env = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (name, value) in enumerate(pairs):
        env[f"GIT_CONFIG_KEY_{number}"] = name
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    return env


def _quoted(path: Path) -> str:
    """Return a path as git wants it in a list with colons: in quotes, bytes outside ASCII in octal."""
    text = "".join(chr(c) if 32 <= c < 127 and c not in b'"\\' else f"\\{c:03o}" for c in os.fsencode(path))
    return f'"{text}"'
