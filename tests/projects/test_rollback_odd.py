"""Repositories as the wild has them: odd names, odd files, and configurations that want to run something."""

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from projects import git as guarded
from projects import rollback
from projects.rollback import Refused, Wanted
from projects.rollback import repository as repositories
from tests.projects.files import write_prd
from tests.projects.repositories import PRD, commit, git, init, settled, state, tree, worked

pytestmark = pytest.mark.pure

AT = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture
def root(tmp_path):
    return worked(tmp_path / "demo")


def code(root: Path) -> dict[str, tuple[int, str]]:
    return {path: value for path, value in tree(root).items() if not path.startswith("scripts")}


def blockers(root, prd=PRD, **wanted):
    before = state(root)
    seen = rollback.preview(root, prd, Wanted(**wanted))
    assert state(root) == before
    return [refusal.code for refusal in seen.blockers]


def there_and_back(root, tmp_path, expected=None, prd=PRD):
    """Roll HEAD back, compare the tree with `expected`, undo, and see everything as it was."""
    before = settled(root)
    plan = rollback.build(root, prd, Wanted(), at=AT)
    saved = tmp_path / "saved"
    rollback.save(root, rollback.Plan.from_json(json.loads(json.dumps(plan.to_json()))), saved)
    rollback.carry_out(root, plan, saved)
    assert git(root, "rev-parse", "HEAD") == plan.new
    assert not git(root, "diff", "HEAD", "--name-only", "--", ".", ":!scripts")
    if expected is not None:
        assert code(root) == expected
    rollback.undo(root, plan, saved)
    assert settled(root) == before


def two(root: Path, first, second) -> dict[str, tuple[int, str]]:
    """Commit what `first` and then what `second` makes of the code; return the code as it was after `first`."""
    first()
    git(root, "add", "-A", "--", ".", ":!scripts")
    commit(root, "base", add=False)
    before = code(root)
    second()
    git(root, "add", "-A", "--", ".", ":!scripts")
    commit(root, "feat: [US-002] odd", add=False)
    return before


class TestNames:
    NAMES = (
        b"-rf",
        b"--help",
        b"new\nline",
        b"tab\there",
        b'"quoted"',
        b"back\\slash",
        b"\xff\xfe not utf-8",
        "ä".encode(),
        "a\u0308".encode(),
        "日本語".encode(),
        b":(glob)**",
        b"*",
        b"sp ace ",
        b" leading",
        b"Case",
        b"case",
        b"%2e%00",
        b"x" * 250,
        b"deep/" * 60 + b"file",
    )

    def test_all_come_back(self, root, tmp_path):
        top = os.fsencode(root) + b"/odd/"

        def make():
            for name in self.NAMES:
                os.makedirs(os.path.dirname(top + name), exist_ok=True)
                with open(top + name, "wb") as file:
                    file.write(b"old " + name)

        def change():
            for name in self.NAMES[::2]:
                os.unlink(top + name)
            for name in self.NAMES[1::2]:
                with open(top + name, "wb") as file:
                    file.write(b"new")
            (root / "odd/added\x01").write_text("added")

        expected = two(root, make, change)
        seen = rollback.preview(root, PRD, Wanted())
        assert seen.files_total == len(self.NAMES) + 1
        assert json.dumps([(f.path, f.old_path) for f in seen.files]).encode()
        assert "\\xff\\xfe not utf-8" in "".join(f.path for f in seen.files)
        there_and_back(root, tmp_path, expected)

    @pytest.mark.parametrize(
        "message",
        [
            'feat: "quotes" and $(touch x) `id`',
            "feat: a\x1b[31m colour",
            "x" * 5000,
            "two\nlines\nof subject\n\nbody",
            "fix: x\n\nAndon-Rolls-Back: " + "a" * 40,
        ],
    )
    def test_subjects(self, root, tmp_path, message):
        git(root, "commit", "-q", "--amend", "-m", message)
        plan = rollback.build(root, PRD, Wanted(), at=AT)
        assert "\x1b" not in plan.message
        assert len(plan.message.splitlines()[0]) < 250
        assert plan.message.splitlines()[1] == ""
        there_and_back(root, tmp_path)

    def test_subject_not_utf8(self, root, tmp_path):
        git(root, "commit", "-q", "--amend", "-F", "-", input=b"feat: \xff\x00caf\xe9\n", check=False)
        git(root, "-c", "i18n.commitEncoding=nonsense", "commit", "-q", "--amend", "-F", "-", input=b"caf\xe9\n")
        there_and_back(root, tmp_path)

    def test_directory_with_a_colon_and_quotes(self, tmp_path):
        there_and_back(worked(tmp_path / 'a:b "c"\\d ä'), tmp_path)


class TestKinds:
    def test_modes(self, root, tmp_path):
        there_and_back(root, tmp_path, two(root, lambda: None, lambda: (root / "README.md").chmod(0o755)))

    def test_links(self, root, tmp_path):
        def make():
            (root / "link").symlink_to("README.md")
            (root / "away").symlink_to("/etc/hostname")
            (root / "file").write_text("file")

        def change():
            (root / "link").unlink()
            (root / "link").write_text("now a file")
            (root / "away").unlink()
            (root / "away").symlink_to("elsewhere")
            (root / "file").unlink()
            (root / "file").symlink_to("README.md")

        there_and_back(root, tmp_path, two(root, make, change))

    def test_file_becomes_folder(self, root, tmp_path):
        def change():
            (root / "thing").unlink()
            (root / "thing/inner").mkdir(parents=True)
            (root / "thing/inner/a").write_text("a")
            (root / "thing/b").write_text("b")

        there_and_back(root, tmp_path, two(root, lambda: (root / "thing").write_text("x"), change))

    def test_folder_becomes_file(self, root, tmp_path):
        def make():
            (root / "thing/inner").mkdir(parents=True)
            (root / "thing/inner/a").write_text("a")

        def change():
            (root / "thing/inner/a").unlink()
            (root / "thing/inner").rmdir()
            (root / "thing").rmdir()
            (root / "thing").write_text("x")

        there_and_back(root, tmp_path, two(root, make, change))

    def test_folder_becomes_link(self, root, tmp_path):
        def make():
            (root / "lib").mkdir()
            (root / "lib/a").write_text("a")

        def change():
            (root / "lib/a").unlink()
            (root / "lib").rmdir()
            (root / "lib").symlink_to("src")

        there_and_back(root, tmp_path, two(root, make, change))

    def test_untracked_and_ignored_neighbours_stay(self, root, tmp_path):
        (root / "src/x.cache").write_text("ignored")
        (root / "src/notes.txt").write_text("untracked")
        (root / "empty").mkdir()
        there_and_back(root, tmp_path)
        assert (root / "src/x.cache").read_text() == "ignored"

    def test_a_folder_that_only_its_cache_keeps(self, root, tmp_path):
        def change():
            (root / "pkg").mkdir()
            (root / "pkg/a.py").write_text("a")

        two(root, lambda: None, change)
        (root / "pkg/a.cache").write_text("compiled")
        there_and_back(root, tmp_path)
        assert (root / "pkg/a.cache").exists()

    def test_private_files_are_private_after_an_undo(self, root, tmp_path):
        (root / "src/app.py").chmod(0o600)
        git(root, "status")
        there_and_back(root, tmp_path)

    def test_binary_and_empty(self, root, tmp_path):
        def change():
            (root / "bin").write_bytes(bytes(range(256)) * 10)
            (root / "empty.txt").write_bytes(b"")

        expected = two(root, lambda: (root / "bin").write_bytes(b"\0\1"), change)
        seen = rollback.preview(root, PRD, Wanted())
        assert {(f.path, f.added) for f in seen.files} == {("bin", None), ("empty.txt", 0)}
        there_and_back(root, tmp_path, expected)

    def test_many_files(self, root, tmp_path):
        def make():
            for number in range(3500):
                path = root / f"many/{number % 50}/{number}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{number}\n")

        expected = two(root, lambda: None, make)
        seen = rollback.preview(root, PRD, Wanted())
        assert (len(seen.files), seen.files_total) == (2000, 3500)
        assert len(seen.stat) < 30_000
        there_and_back(root, tmp_path, expected)

    def test_sha256(self, tmp_path):
        root = init(tmp_path / "demo", "--object-format=sha256")
        write_prd(root, "pending")
        (root / "a").write_text("one")
        commit(root, "base")
        (root / "a").write_text("two")
        commit(root, "feat: [US-001] a")
        there_and_back(root, tmp_path)

    @pytest.mark.parametrize("version", ["2", "3", "4"])
    def test_index_versions(self, root, tmp_path, version):
        git(root, "update-index", f"--index-version={version}")
        there_and_back(root, tmp_path)

    @pytest.mark.parametrize("option", ["--split-index", "--untracked-cache"])
    def test_index_extensions(self, root, tmp_path, option):
        git(root, "update-index", option)
        there_and_back(root, tmp_path)

    def test_a_submodule_that_stands_still_is_in_nobodys_way(self, root, tmp_path):
        other = init(tmp_path / "other")
        (other / "x").write_text("x")
        commit(other, "one")
        git(root, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other), "module")
        two(root, lambda: None, lambda: (root / "src/app.py").write_text("x"))
        git(root / "module", "config", "core.fsmonitor", str(trap(tmp_path)))
        there_and_back_without_git(root, tmp_path)
        (root / "module/x").write_text("dirty inside")
        (tmp_path / "saved").rename(tmp_path / "first")
        there_and_back_without_git(root, tmp_path)
        git(root / "module", "config", "--unset", "core.fsmonitor")
        commit(root / "module", "moved on")
        assert blockers(root) == ["dirty-tree"]


class TestPlaces:
    def test_work_tree(self, root, tmp_path):
        commit(root, "chore: notes")
        git(root, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
        side = tmp_path / "side"
        two(side, lambda: None, lambda: (side / "src/app.py").write_text("side"))
        main = settled(root)["tree"]
        there_and_back(side, tmp_path)
        assert settled(root)["tree"] == main

    def test_main_tree_of_work_trees(self, root, tmp_path):
        git(root, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
        there_and_back(root, tmp_path)

    def test_branch_in_two_work_trees(self, root, tmp_path):
        git(root, "worktree", "add", "-q", "--force", str(tmp_path / "side"), "main")
        assert blockers(root) == ["branch-elsewhere"]
        assert "branch-elsewhere" in blockers(tmp_path / "side")

    def test_operation_in_a_work_tree(self, root, tmp_path):
        git(root, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
        (root / ".git/worktrees/side/MERGE_HEAD").write_text(git(root, "rev-parse", "HEAD"))
        assert "operation-in-progress" in blockers(tmp_path / "side")
        assert blockers(root) == []

    def test_separate_git_dir(self, root, tmp_path):
        git(root, "init", "-q", f"--separate-git-dir={tmp_path / 'elsewhere.git'}")
        assert (root / ".git").is_file()
        there_and_back(root, tmp_path)

    def test_a_submodule_is_a_project_of_its_own(self, root, tmp_path):
        outer = init(tmp_path / "outer")
        git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(root), "demo")
        inner = outer / "demo"
        write_prd(inner, "passed", "passed", "pending")
        there_and_back(inner, tmp_path)

    @pytest.mark.parametrize(
        "text", ["gitdir: ../demo/.git\n", "gitdir: nowhere\n", "nonsense", "", "\0", "gitdir: /\n"]
    )
    def test_dot_git_files_that_lead_astray(self, root, tmp_path, text):
        other = tmp_path / "other"
        other.mkdir()
        (other / ".git").write_text(text)
        with pytest.raises(Refused) as caught:
            rollback.build(other, PRD, Wanted(), at=AT)
        assert caught.value.code == "not-a-git-repository"

    def test_a_borrowed_work_tree(self, root, tmp_path):
        git(root, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
        thief = tmp_path / "thief"
        thief.mkdir()
        (thief / ".git").write_bytes((tmp_path / "side/.git").read_bytes())
        assert [b.code for b in rollback.preview(thief, PRD, Wanted()).blockers] == ["not-a-git-repository"]

    def test_alternates(self, root, tmp_path):
        git(tmp_path, "clone", "-q", "--shared", str(root), str(tmp_path / "clone"))
        there_and_back(tmp_path / "clone", tmp_path)

    def test_packed(self, root, tmp_path):
        git(root, "gc", "-q")
        git(root, "pack-refs", "--all")
        there_and_back(root, tmp_path)

    def test_core_worktree_elsewhere(self, root, tmp_path):
        victim = tmp_path / "victim"
        victim.mkdir()
        git(root, "config", "core.worktree", str(victim))
        plan = rollback.build(root, PRD, Wanted(), at=AT)
        rollback.save(root, plan, tmp_path / "saved")
        rollback.carry_out(root, plan, tmp_path / "saved")
        assert list(victim.iterdir()) == []
        assert (root / "src/first.py").exists()

    def test_another_owner(self, root, monkeypatch):
        monkeypatch.setattr("projects.rollback.repository.os.geteuid", lambda: 12345)
        assert [b.code for b in rollback.preview(root, PRD, Wanted()).blockers] == ["other-owner"]

    def test_an_old_git(self, root, monkeypatch):
        monkeypatch.setattr(repositories, "_git_version", lambda: (2, 37))
        assert [b.code for b in rollback.preview(root, PRD, Wanted()).blockers] == ["git-too-old"]


def trap(tmp_path: Path, then: str = "exit 1") -> Path:
    """Return a program that leaves `sprung` behind when somebody runs it."""
    program = tmp_path / "trap"
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/sprung'\necho noise\n{then}\n")
    program.chmod(0o755)
    return program


HOOKS = (
    *("pre-commit", "commit-msg", "prepare-commit-msg", "post-commit", "post-checkout", "post-merge", "pre-rebase"),
    *("reference-transaction", "post-index-change", "post-rewrite", "fsmonitor-watchman", "pre-auto-gc", "update"),
)


class TestPrograms:
    """Nothing that the repository or the user's configuration names is ever run."""

    def test_hooks(self, root, tmp_path):
        (root / ".git/hooks").mkdir()
        for hook in HOOKS:
            (root / ".git/hooks" / hook).symlink_to(trap(tmp_path))
        there_and_back_without_git(root, tmp_path)

    @pytest.mark.parametrize(
        "key",
        [
            *("core.fsmonitor", "core.editor", "core.pager", "core.sshCommand", "core.askPass", "core.gitProxy"),
            *("gpg.program", "diff.external", "sequence.editor", "credential.helper", "core.alternateRefsCommand"),
            *("uploadpack.packObjectsHook", "diff.x.textconv", "diff.x.command", "merge.x.driver", "merge.tool"),
        ],
    )
    def test_settings(self, root, tmp_path, key):
        two(root, lambda: (root / ".gitattributes").write_text("*.py diff=x merge=x\n"), lambda: change(root))
        git(root, "config", key, str(trap(tmp_path)))
        git(root, "config", "commit.gpgSign", "true")
        git(root, "config", "tag.gpgSign", "true")
        there_and_back_without_git(root, tmp_path)

    def test_hooks_path(self, root, tmp_path):
        hooks = tmp_path / "hooks"
        hooks.mkdir()
        for hook in HOOKS:
            (hooks / hook).symlink_to(trap(tmp_path))
        git(root, "config", "core.hooksPath", str(hooks))
        there_and_back_without_git(root, tmp_path)

    @pytest.mark.parametrize("kind", ["clean", "smudge", "process"])
    @pytest.mark.parametrize("driver", ["lfs", "odd.name = x"])
    def test_filters_in_the_way_are_refused(self, root, tmp_path, kind, driver):
        git(root, "config", f"filter.{driver}.{kind}", str(trap(tmp_path)))
        git(root, "config", f"filter.{driver}.required", "true")
        (root / ".git/info").mkdir(exist_ok=True)
        (root / ".git/info/attributes").write_text("src/* filter=lfs\n" if driver == "lfs" else "src/* filter=odd\n")
        os.utime(root / "README.md", (1, 1))
        assert blockers(root) == ["filter-change"]
        assert not (tmp_path / "sprung").exists()

    def test_filters_elsewhere_are_in_nobodys_way(self, root, tmp_path):
        git(root, "config", "filter.lfs.clean", str(trap(tmp_path)))
        git(root, "config", "filter.lfs.smudge", str(trap(tmp_path)))
        git(root, "config", "filter.lfs.required", "true")
        (root / ".git/info").mkdir(exist_ok=True)
        (root / ".git/info/attributes").write_text("README.md filter=lfs\n")
        os.utime(root / "README.md", (1, 1))
        there_and_back_without_git(root, tmp_path)

    def test_attributes_that_only_come_back(self, root, tmp_path):
        def make():
            (root / ".gitattributes").write_text("*.bin filter=evil\n")
            (root / "x.bin").write_text("x")

        def take():
            (root / ".gitattributes").unlink()
            (root / "x.bin").unlink()

        two(root, make, take)
        git(root, "config", "filter.evil.smudge", str(trap(tmp_path)))
        assert blockers(root) == ["filter-change"]
        assert not (tmp_path / "sprung").exists()

    def test_a_merge_driver_is_a_conflict(self, root, tmp_path):
        lines = [f"{n}\n" for n in range(40)]
        path = root / "src/long.py"
        two(root, lambda: path.write_text("".join(lines)), lambda: path.write_text("".join(["first\n", *lines])))
        path.write_text("".join(["first\n", *lines, "last\n"]))
        git(root, "add", "src")
        commit(root, "later", add=False)
        assert blockers(root, commit=git(root, "rev-parse", "HEAD~1")) == []
        git(root, "config", "merge.x.driver", str(trap(tmp_path, "exit 0")))
        (root / ".git/info").mkdir(exist_ok=True)
        (root / ".git/info/attributes").write_text("* merge=x\n")
        assert blockers(root, commit=git(root, "rev-parse", "HEAD~1")) == ["conflict"]
        assert not (tmp_path / "sprung").exists()

    def test_the_users_configuration_is_not_read(self, root, tmp_path, monkeypatch):
        home = tmp_path / "home"
        (home / ".config/git").mkdir(parents=True)
        (home / ".gitconfig").write_text(f'[core]\n\tfsmonitor = {trap(tmp_path)}\n[broken "\n')
        (home / ".config/git/attributes").write_text("* filter=lfs\n")
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
        monkeypatch.setenv("GIT_DIR", "/nonexistent")
        monkeypatch.setenv("GIT_OBJECT_DIRECTORY", "/nonexistent")
        there_and_back(root, tmp_path)
        assert not (tmp_path / "sprung").exists()

    def test_nonsense_in_its_own_configuration(self, root):
        (root / ".git/config").write_text("[core\nnonsense")
        before = tree(root)
        seen = rollback.preview(root, PRD, Wanted())
        assert [b.code for b in seen.blockers] == ["git-failed"]
        with pytest.raises(guarded.GitError):
            rollback.build(root, PRD, Wanted(), at=AT)
        assert tree(root) == before


def change(root: Path) -> None:
    (root / "src/app.py").write_text("changed\n")


def there_and_back_without_git(root: Path, tmp_path: Path) -> None:
    """Roll back and undo while a trap is set; git itself would run into it, so only the tree is compared."""
    before = tree(root)
    index = (root / ".git/index").read_bytes()
    seen = rollback.preview(root, PRD, Wanted())
    assert seen.blockers == ()
    plan = rollback.build(root, PRD, Wanted(), at=AT)
    rollback.save(root, plan, tmp_path / "saved")
    rollback.carry_out(root, plan, tmp_path / "saved")
    assert tree(root) != before
    rollback.undo(root, plan, tmp_path / "saved")
    assert tree(root) == before
    assert (root / ".git/index").read_bytes() == index
    assert not (tmp_path / "sprung").exists()


class TestConversions:
    @pytest.mark.parametrize("setting", ["true", "input"])
    def test_line_ends(self, root, tmp_path, setting):
        git(root, "config", "core.autocrlf", setting)
        (root / "crlf.txt").write_bytes(b"one\r\ntwo\r\n")
        git(root, "add", "crlf.txt")
        commit(root, "base", add=False)
        (root / "crlf.txt").write_bytes(b"one\r\ntwo\r\nthree\r\n")
        git(root, "add", "crlf.txt")
        commit(root, "feat: [US-002] ends", add=False)
        there_and_back(root, tmp_path)

    def test_mixed_line_ends_come_back_as_they_were(self, root, tmp_path):
        (root / ".gitattributes").write_text("*.txt text=auto\n")
        two(root, lambda: None, lambda: (root / "mixed.txt").write_bytes(b"one\r\ntwo\nthree\r\n"))
        there_and_back(root, tmp_path)

    def test_working_tree_encoding_and_ident(self, root, tmp_path):
        (root / ".gitattributes").write_text("*.u16 working-tree-encoding=UTF-16LE\n*.id ident\n")

        def make():
            (root / "a.u16").write_bytes("one\n".encode("utf-16-le"))
            (root / "a.id").write_text("$Id$ one\n")

        def change():
            (root / "a.u16").write_bytes("two\n".encode("utf-16-le"))
            (root / "a.id").write_text("$Id$ two\n")

        two(root, make, change)
        there_and_back(root, tmp_path)
        plan = rollback.build(root, PRD, Wanted(), at=AT)
        rollback.save(root, plan, tmp_path / "again")
        rollback.carry_out(root, plan, tmp_path / "again")
        assert (root / "a.u16").read_bytes() == "one\n".encode("utf-16-le")

    def test_replace_refs_and_grafts_count_for_nothing(self, root):
        head = git(root, "rev-parse", "HEAD")
        first = git(root, "rev-parse", "HEAD~2")
        git(root, "replace", head, first)
        (root / ".git/info").mkdir(exist_ok=True)
        (root / ".git/info/grafts").write_text(f"{head}\n")
        assert rollback.preview(root, PRD, Wanted()).parents == (
            git(root, "rev-parse", f"{head}^", GIT_NO_REPLACE_OBJECTS="1", GIT_GRAFT_FILE=os.devnull),
        )


class TestFailures:
    def test_what_git_cannot_remove_is_undone(self, root, tmp_path, monkeypatch):
        plan, saved = rollback.build(root, PRD, Wanted(), at=AT), tmp_path / "saved"
        before = settled(root)
        rollback.save(root, plan, saved)
        real = guarded.run

        def run(args, *rest, **named):
            out = real(args, *rest, **named)
            if args[0] == "read-tree" and "-u" in args:
                (root / "src/second.py").write_text("git could not remove it\n")
            return out

        monkeypatch.setattr(guarded, "run", run)
        with pytest.raises(OSError, match="has not removed"):
            rollback.carry_out(root, plan, saved)
        assert rollback.resume(root, plan, saved) == "undone"
        rollback_free = settled(root)
        del before["refs"], rollback_free["refs"]
        assert rollback_free == before

    @pytest.mark.parametrize("verb", ["read-tree", "update-ref"])
    def test_git_dies(self, root, tmp_path, monkeypatch, verb):
        before = settled(root)
        plan, saved = rollback.build(root, PRD, Wanted(), at=AT), tmp_path / "saved"
        rollback.save(root, plan, saved)
        real = guarded.run

        def run(args, *rest, **named):
            if args[0] == verb:
                raise guarded.GitError(args, -9, "")
            return real(args, *rest, **named)

        with monkeypatch.context() as patched:
            patched.setattr(guarded, "run", run)
            with pytest.raises(guarded.GitError):
                rollback.carry_out(root, plan, saved)
        assert rollback.resume(root, plan, saved) == "undone"
        assert settled(root) == before

    def test_a_git_that_lives_on_is_waited_for(self, root, tmp_path, monkeypatch):
        plan, saved = rollback.build(root, PRD, Wanted(), at=AT), tmp_path / "saved"
        rollback.save(root, plan, saved)
        with (root / f".git/andon-{plan.new[:16]}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            monkeypatch.setattr("projects.rollback.carrying.ORPHAN_ENDS_WITHIN_S", 0.2)
            with pytest.raises(Refused) as caught:
                rollback.resume(root, plan, saved)
            assert caught.value.code == "index-locked"
        assert rollback.resume(root, plan, saved) == "undone"
