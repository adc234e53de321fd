"""The directory a worker runs in, on real directories and real repositories, and what may be in its way."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kanban.workspaces import (
    FOLDER,
    MARKER,
    CannotMake,
    artefacts,
    aside,
    clear,
    is_ours,
    keep,
    make,
    removing,
    set_aside,
)
from projects import git

pytestmark = pytest.mark.pure

TASK = "t_1a2b3c4d"
BRANCH = f"refs/heads/andon/{TASK}"


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(root):
    top = root / "greenhouse"
    (top / "docs").mkdir(parents=True)
    git.run(["init", "-q", "--initial-branch=main", "--template="], top)
    (top / "a.txt").write_text("one\n")
    (top / "docs/b.md").write_text("two\n")
    git.run(["add", "-A"], top)
    git.run(["commit", "-q", "-m", "first"], top)
    return top


@pytest.fixture
def scratch(home):
    return lambda: make("scratch", task_id=TASK, home=home, path="", roots=[], repository=None)


@pytest.fixture
def directory(home, root):
    return lambda path: make("dir", task_id=TASK, home=home, path=str(path), roots=[home / "no", root], repository=None)


@pytest.fixture
def worktree(home, root, repository):
    def make_it(path="", repository=repository, task_id=TASK):
        return make("worktree", task_id=task_id, home=home, path=str(path), roots=[root], repository=repository)

    return make_it


@pytest.fixture
def removed(home, tmp_path):
    def remove(*kept, task_id=TASK):
        keep(task_id, home=home, kept=kept, to=tmp_path / "kept")
        is_gone = set_aside(task_id, home=home)
        for name in aside(home=home):
            clear(name, home=home)
        return is_gone

    return remove


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def refused(*words):
    return pytest.raises(CannotMake, match=".*".join(words))


class TestScratch:
    def test_is_made(self, scratch, home):
        place = scratch()
        assert place == home / FOLDER / TASK
        assert (place / MARKER).read_text() == TASK
        assert [mode(each) for each in (place, place.parent, place / MARKER)] == [0o700, 0o700, 0o600]

    def test_of_an_earlier_attempt_is_found(self, scratch):
        place = scratch()
        (place / "half.txt").write_text("half")
        place.chmod(0o755)
        assert scratch() == place
        assert (place / "half.txt").read_text() == "half"
        assert mode(place) == 0o700

    def test_home_may_be_reached_by_a_link(self, home, tmp_path):
        link = tmp_path / "link"
        link.symlink_to(home)
        place = make("scratch", task_id=TASK, home=link, path="", roots=[], repository=None)
        assert (home / FOLDER / TASK / MARKER).is_file()
        assert place == link / FOLDER / TASK

    @pytest.mark.parametrize("left", [None, "", "t_1a2"])
    def test_crash_before_its_marker_was_whole(self, scratch, home, left):
        place = home / FOLDER / TASK
        place.mkdir(parents=True)
        if left is not None:
            (place / MARKER).write_text(left)
        assert scratch() == place
        assert (place / MARKER).read_text() == TASK

    @pytest.mark.parametrize("mark", [None, "t_00000000", TASK + "0", "t_1a2"])
    def test_what_is_not_ours_is_left_alone(self, scratch, home, mark):
        place = home / FOLDER / TASK
        place.mkdir(parents=True)
        (place / "precious").write_text("x")
        if mark:
            (place / MARKER).write_text(mark)
        with refused("there already", "no marker of this task"):
            scratch()
        assert (place / "precious").read_text() == "x"

    def test_marker_of_another_task_alone(self, scratch, home):
        place = home / FOLDER / TASK
        place.mkdir(parents=True)
        (place / MARKER).write_text("t_00000000")
        with refused("no marker of this task"):
            scratch()
        assert (place / MARKER).read_text() == "t_00000000"

    @pytest.mark.parametrize("where", ["", TASK])
    def test_never_through_a_link(self, scratch, home, tmp_path, where):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        if where:
            (home / FOLDER).mkdir()
        (home / FOLDER / where).symlink_to(elsewhere)
        with refused(where or FOLDER, "is in the way"):
            scratch()
        assert list(elsewhere.iterdir()) == []

    def test_file_in_the_way(self, scratch, home):
        (home / FOLDER).mkdir()
        (home / FOLDER / TASK).write_text("x")
        with refused(TASK, "is in the way"):
            scratch()

    def test_marker_that_is_a_link(self, scratch, tmp_path):
        place = scratch()
        (tmp_path / "id").write_text(TASK)
        (place / MARKER).unlink()
        (place / MARKER).symlink_to(tmp_path / "id")
        with refused(MARKER, "a link is in the way"):
            scratch()

    def test_marker_that_is_a_pipe_keeps_nobody_waiting(self, scratch):
        place = scratch()
        (place / MARKER).unlink()
        os.mkfifo(place / MARKER)
        with refused(MARKER):
            scratch()

    def test_no_home(self, tmp_path):
        with refused("gone", "no such file or directory"):
            make("scratch", task_id=TASK, home=tmp_path / "gone", path="", roots=[], repository=None)


@pytest.mark.parametrize("task_id", ["", "..", "a/b", "-x", "t_1\n", ".x", "t_\0", "é", "a" * 129])
def test_what_is_no_task_id(home, task_id, removed):
    with refused("is not a task id"):
        make("scratch", task_id=task_id, home=home, path="", roots=[], repository=None)
    assert list(home.iterdir()) == []
    assert removed(task_id=task_id) is False


def test_unknown_kind(home):
    with refused("cloud is not a kind of workspace"):
        make("cloud", task_id=TASK, home=home, path="", roots=[], repository=None)


class TestDir:
    def test_is_made_with_its_parents_and_no_marker(self, directory, root):
        assert directory(root / "a/b/c") == root / "a/b/c"
        assert list((root / "a/b/c").iterdir()) == []

    def test_that_is_there(self, directory, root):
        (root / "there").mkdir(mode=0o750)
        (root / "there/x").write_text("x")
        assert directory(root / "there") == root / "there"
        assert mode(root / "there") == 0o750

    def test_root_itself(self, directory, root):
        assert directory(root) == root

    def test_link_that_stays_inside(self, directory, root):
        (root / "real").mkdir()
        (root / "link").symlink_to(root / "real")
        assert directory(root / "link/deeper") == root / "real/deeper"

    def test_root_that_is_a_link(self, home, root, tmp_path):
        (tmp_path / "alias").symlink_to(root)
        place = make("dir", task_id=TASK, home=home, path=str(root / "x"), roots=[tmp_path / "alias"], repository=None)
        assert place == root / "x"

    def test_outside(self, directory, root, tmp_path):
        for path in (tmp_path, tmp_path / "rootless", f"{root}less", "/"):
            with refused("is outside the allowed roots"):
                directory(path)
        assert not Path(f"{root}less").exists()

    @pytest.mark.parametrize("path", ["relative", "./x", "{}/a/../b", "{}/..", "~/x", " {}"])
    def test_not_absolute_or_not_plain(self, directory, root, path):
        with refused("is not an absolute path without"):
            directory(path.format(root))

    @pytest.mark.parametrize("path", ["{}/a\0b", "{}/a\ud800b"])
    def test_not_a_path(self, directory, root, path):
        with refused("is not a path that can be followed"):
            directory(path.format(root))

    def test_none(self, directory):
        with refused("it has no path"):
            directory("")

    def test_link_out(self, directory, root, tmp_path):
        (root / "link").symlink_to(tmp_path)
        with refused("is outside the allowed roots"):
            directory(root / "link/x")
        assert not (tmp_path / "x").exists()

    def test_link_that_was_put_there_since(self, directory, root, tmp_path, monkeypatch):
        (root / "link").symlink_to(tmp_path)
        monkeypatch.setattr("os.path.realpath", str)
        with refused("link is in the way"):
            directory(root / "link/x")
        assert not (tmp_path / "x").exists()

    def test_link_to_itself(self, directory, root):
        (root / "loop").symlink_to(root / "loop")
        with refused("loop is in the way"):
            directory(root / "loop")

    @pytest.mark.parametrize("below", ["", "/x/y"])
    def test_file_in_the_way(self, directory, root, below):
        (root / "file").write_text("x")
        with refused("file is in the way"):
            directory(f"{root}/file{below}")
        assert (root / "file").read_text() == "x"

    def test_root_that_is_gone(self, home, tmp_path):
        gone = tmp_path / "gone"
        with refused("gone: no such file"):
            make("dir", task_id=TASK, home=home, path=str(gone / "x"), roots=[gone], repository=None)

    def test_our_own_home(self, home, tmp_path):
        for path in (home, home / "run"):
            with refused("inside Andon's own home"):
                make("dir", task_id=TASK, home=home, path=str(path), roots=[tmp_path], repository=None)

    def test_name_that_is_too_long(self, directory, root):
        with refused("file name too long"):
            directory(root / ("x" * 300))


class TestWorktree:
    def test_is_a_work_tree_on_its_branch(self, worktree, home, repository):
        place = worktree()
        assert place == home / FOLDER / TASK
        assert git.run(["symbolic-ref", "HEAD"], place).decode().strip() == BRANCH
        assert (place / "docs/b.md").read_text() == "two\n"
        assert git.run(["status", "--porcelain"], place) == b""
        assert [mode(each) for each in (place, place.parent)] == [0o700, 0o700]
        assert git.run(["branch", "--show-current"], repository) == b"main\n"

    def test_again_is_the_same_with_all_that_is_in_it(self, worktree):
        place = worktree()
        (place / "a.txt").write_text("changed\n")
        git.run(["checkout", "-q", "--detach"], place)
        assert worktree() == place
        assert (place / "a.txt").read_text() == "changed\n"

    def test_branch_of_an_earlier_attempt(self, worktree, repository):
        place = worktree()
        git.run(["commit", "-q", "--allow-empty", "-m", "half"], place)
        git.run(["worktree", "remove", "--", str(place)], repository)
        assert git.run(["log", "-1", "--format=%s"], worktree()) == b"half\n"

    def test_directory_gone(self, worktree):
        place = worktree()
        git.run(["commit", "-q", "--allow-empty", "-m", "half"], place)
        place.rename(place.with_name("away"))
        assert worktree() == place
        assert git.run(["log", "-1", "--format=%s"], place) == b"half\n"

    def test_gone_from_another_place(self, worktree, root):
        worktree(root / "first").rename(root / "away")
        assert worktree(root / "second") == root / "second"

    def test_killed_in_the_middle(self, worktree, repository, home):
        (repository / ".gitattributes").write_text("*.md filter=trap\n")
        git.run(["add", "-A"], repository)
        git.run(["commit", "-q", "-m", "trap"], repository)
        git.run(["config", "filter.trap.smudge", "kill -9 0"], repository)
        with refused("git worktree add", "killed by signal 9"):
            worktree()
        place = home / FOLDER / TASK
        assert place.exists()
        assert b"locked initializing" in git.run(["worktree", "list", "--porcelain"], repository)
        git.run(["config", "filter.trap.smudge", "cat"], repository)
        assert worktree() == place
        assert (place / "docs/b.md").read_text() == "two\n"
        assert git.run(["status", "--porcelain"], place) == b""
        assert b"locked" not in git.run(["worktree", "list", "--porcelain"], repository)

    @pytest.mark.parametrize("lost", [["place/.git"], ["place/.git", "admin/HEAD"], ["place"]])
    def test_killed_earlier_still(self, worktree, repository, home, lost):
        place = worktree()
        admin = repository / ".git/worktrees" / TASK
        (admin / "locked").write_text("initializing")
        for name in lost:
            path = {"place": place, "admin": admin}[name.partition("/")[0]] / name.partition("/")[2]
            path.rename(home / path.name)
        assert worktree() == place
        assert git.run(["symbolic-ref", "HEAD"], place).decode().strip() == BRANCH
        assert git.run(["status", "--porcelain"], place) == b""

    def test_branch_alone(self, worktree, repository):
        git.run(["branch", f"andon/{TASK}"], repository)
        assert git.run(["symbolic-ref", "HEAD"], worktree()).decode().strip() == BRANCH

    def test_at_a_path(self, worktree, root):
        assert worktree(root / "trees/one") == root / "trees/one"
        assert (root / "trees/one/a.txt").is_file()
        assert worktree(root / "trees/one") == root / "trees/one"

    def test_locked_by_a_person_and_gone(self, worktree, repository):
        place = worktree()
        git.run(["worktree", "lock", "--reason", "on a stick", str(place)], repository)
        place.rename(place.with_name("away"))
        with refused("git worktree add", "locked"):
            worktree()

    def test_path_of_another_work_tree(self, worktree, root):
        place = worktree(root / "tree", task_id="t_00000000")
        with refused("tree is a worktree of something else"):
            worktree(place)

    def test_repository_itself(self, worktree, repository):
        with refused("is a worktree of something else"):
            worktree(repository)

    def test_something_in_the_way(self, worktree, home, root):
        for place in (home / FOLDER / TASK, root / "tree"):
            place.mkdir(parents=True)
            (place / "precious").write_text("x")
            with refused("is there already, and it is no worktree of greenhouse"):
                worktree("" if place.is_relative_to(home) else place)
            assert [each.name for each in place.iterdir()] == ["precious"]

    def test_its_link_to_the_repository_was_deleted(self, worktree):
        place = worktree()
        (place / ".git").unlink()
        with refused("is there already, and it is no worktree"):
            worktree()
        assert (place / "a.txt").is_file()

    def test_rule_of_dir(self, worktree, tmp_path, root):
        with refused("is outside the allowed roots"):
            worktree(tmp_path / "x")
        (root / "file").write_text("")
        with refused("file is in the way"):
            worktree(root / "file/x")

    def test_never_through_a_link(self, worktree, home, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (home / FOLDER).mkdir()
        (home / FOLDER / TASK).symlink_to(tmp_path / "elsewhere")
        with refused(TASK, "is in the way"):
            worktree()
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_no_repository(self, worktree, root):
        with refused("needs a project"):
            worktree(repository=None)
        with refused("root is not a git repository"):
            worktree(repository=root)
        with refused("gone is not a git repository"):
            worktree(repository=root / "gone")

    def test_repository_without_a_commit(self, worktree, root):
        (root / "empty").mkdir()
        git.run(["init", "-q"], root / "empty")
        with refused("empty has no commit yet"):
            worktree(repository=root / "empty")

    def test_branch_is_held_elsewhere(self, worktree, root):
        worktree(root / "first")
        with refused(rf"git worktree add: 'andon/{TASK}' is already"):
            worktree(root / "second")

    def test_branch_cannot_be(self, worktree, repository):
        git.run(["branch", "andon"], repository)
        with refused("git worktree add", "refs/heads/andon"):
            worktree()

    def test_hook_does_not_run(self, worktree, repository, tmp_path):
        hook = repository / ".git/hooks/post-checkout"
        hook.parent.mkdir()
        hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/sprung'\n")
        hook.chmod(0o755)
        worktree()
        assert not (tmp_path / "sprung").exists()

    def test_name_with_a_line_end(self, worktree, root):
        assert worktree(root / "a\nworktree b") == root / "a\nworktree b"
        assert worktree(root / "a\nworktree b") == root / "a\nworktree b"


class TestRemove:
    def test_of_ours(self, scratch, removed, tmp_path):
        place = scratch()
        (place / "docs").mkdir()
        (place / "docs/report.md").write_text("good")
        (place / "noise").write_text("x")
        assert removed("docs/report.md") is True
        assert not place.exists()
        assert place.parent.is_dir()
        kept = tmp_path / "kept"
        assert [str(each.relative_to(kept)) for each in kept.rglob("*") if each.is_file()] == ["docs/report.md"]
        assert (kept / "docs/report.md").read_text() == "good"
        assert mode(kept / "docs/report.md") == 0o600

    def test_what_it_does_not_keep(self, scratch, removed, tmp_path, monkeypatch):
        monkeypatch.setattr(removing, "ARTEFACT_BYTES", 10)
        place = scratch()
        (tmp_path / "secret").write_text("s")
        (place / "link").symlink_to(tmp_path / "secret")
        (place / "out").symlink_to(tmp_path)
        (place / "large").write_bytes(b"x" * 11)
        (place / "full").write_bytes(b"x" * 10)
        (place / "folder").mkdir()
        os.mkfifo(place / "pipe")
        names = [
            "link",
            "out/secret",
            "large",
            "full",
            "folder",
            "pipe",
            "gone",
            "../secret",
            "",
            "/etc/passwd",
            "a\0b",
        ]
        assert removed(*names, MARKER, str(tmp_path / "secret")) is True
        assert [each.name for each in (tmp_path / "kept").iterdir()] == ["full"]
        assert (tmp_path / "secret").read_text() == "s"

    def test_newer_copy_replaces_an_older_one(self, scratch, removed, tmp_path):
        for text in ("one", "two"):
            (scratch() / "report.md").write_text(text)
            assert removed("report.md") is True
        assert (tmp_path / "kept/report.md").read_text() == "two"
        assert len(list((tmp_path / "kept").iterdir())) == 1

    def test_links_go_and_what_they_point_to_stays(self, scratch, removed, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "x").write_text("x")
        place = scratch()
        (place / "deep").mkdir()
        (place / "link").symlink_to(elsewhere)
        (place / "deep/link").symlink_to(elsewhere)
        assert removed() is True
        assert (elsewhere / "x").read_text() == "x"

    def test_closed_and_bottomless_directories(self, scratch, removed):
        place = scratch()
        folder = os.open(place, os.O_RDONLY)
        for _ in range(1200):
            os.mkdir("d", dir_fd=folder)
            below = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=below))
            os.fchmod(folder, 0o500)
            os.close(folder)
            folder = below
        os.fchmod(folder, 0)
        os.close(folder)
        place.chmod(0o700)
        assert removed() is True
        assert not place.exists()

    def test_what_is_not_ours(self, scratch, removed, home):
        assert removed() is False
        place = scratch()
        (place / "precious").write_text("x")
        for mark in ("t_00000000", "", TASK + "\n"):
            (place / MARKER).write_text(mark)
            assert removed("precious") is False
        (place / MARKER).unlink()
        assert removed("precious") is False
        (home / "id").write_text(TASK)
        (place / MARKER).symlink_to(home / "id")
        assert removed("precious") is False
        (place / MARKER).unlink()
        (place / MARKER).mkdir()
        assert removed("precious") is False
        assert (place / "precious").read_text() == "x"

    def test_never_through_a_link(self, scratch, removed, tmp_path):
        place = scratch()
        place.rename(tmp_path / "away")
        place.symlink_to(tmp_path / "away")
        assert removed() is False
        assert (tmp_path / "away" / MARKER).is_file()
        place.unlink()
        (tmp_path / "away").rename(place)
        place.parent.rename(tmp_path / "root-away")
        place.parent.symlink_to(tmp_path / "root-away")
        assert removed() is False
        assert (tmp_path / "root-away" / TASK / MARKER).is_file()

    def test_copy_that_cannot_be_written_loses_nothing(self, scratch, removed, tmp_path, monkeypatch):
        place = scratch()
        (place / "report.md").write_text("good")

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            removed("report.md")
        assert is_ours(TASK, home=place.parent.parent)
        assert (place / "report.md").read_text() == "good"
        assert list((tmp_path / "kept").iterdir()) == []

    def test_crash_in_the_middle_leaves_it_ours(self, scratch, removed, home, monkeypatch):
        place = scratch()
        for name in "abc":
            (place / name).mkdir()
        real = os.rmdir
        calls = []

        def fails_once(name, **where):
            calls.append(name)
            if len(calls) == 2:
                raise OSError(16, "Device or resource busy")
            real(name, **where)

        monkeypatch.setattr(os, "rmdir", fails_once)
        with pytest.raises(OSError, match="busy"):
            removed()
        [left] = aside(home=home)
        assert (place.parent / left / MARKER).read_text() == TASK
        # It is out of its task's reach already: whoever works on it now has another.
        (scratch() / "new").write_text("x")
        assert set_aside("t_00000000", home=home) is False
        clear(left, home=home)
        assert aside(home=home) == []
        assert (place / "new").read_text() == "x"

    def test_crash_behind_the_marker_leaves_nothing_for_ever(self, scratch, home):
        place = scratch()
        set_aside(TASK, home=home)
        [name] = aside(home=home)
        (place.parent / name / MARKER).unlink()
        clear(name, home=home)
        assert list(place.parent.iterdir()) == []

    def test_what_is_only_named_as_if_it_was_set_aside(self, scratch, home):
        folder = scratch().parent / f".{TASK}.{'0' * 32}"
        folder.mkdir()
        (folder / "precious").write_text("x")
        for mark in (None, "t_00000000"):
            if mark:
                (folder / MARKER).write_text(mark)
            with pytest.raises(OSError, match="not empty"):
                clear(folder.name, home=home)
        assert (folder / "precious").read_text() == "x"

    @pytest.mark.parametrize("name", ["", ".", "..", TASK, f".{TASK}.0", f"../.{TASK}.{'0' * 32}", f".a/b.{'0' * 32}"])
    def test_nothing_else_is_cleared(self, scratch, home, name):
        scratch()
        with pytest.raises(ValueError, match="not set aside"):
            clear(name, home=home)
        assert is_ours(TASK, home=home)

    def test_without_a_root(self, tmp_path):
        assert aside(home=tmp_path / "nowhere") == []
        assert not is_ours(TASK, home=tmp_path / "nowhere")


class TestArtefacts:
    @pytest.fixture
    def place(self, tmp_path):
        top = tmp_path / "place"
        (top / "docs/deep").mkdir(parents=True)
        for name in ("report.md", "docs/deep/a-b_c.txt", "Makefile", "größe.csv", MARKER, ".env"):
            (top / name).write_text("x")
        (top / "link.md").symlink_to(tmp_path)
        (top / "out").symlink_to(tmp_path)
        (tmp_path / "secret").write_text("s")
        return top

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("", []),
            ("It is in report.md.", ["report.md"]),
            ("See [the report](report.md), `docs/deep/a-b_c.txt` and “größe.csv”…", None),
            ("report.md:12: ./report.md docs//deep/./a-b_c.txt", ["report.md", "docs/deep/a-b_c.txt"]),
            ("file=report.md", ["report.md"]),
            ("make the Makefile", ["Makefile"]),
            ("docs docs/ docs/deep . .. / ./", []),
            ("../secret docs/../report.md out/secret link.md", []),
            (f"{MARKER} ./{MARKER} .env", [".env"]),
            ("/etc/passwd secret report reportmd", []),
            ("a\0b \ud800 \x1b[1m", []),
        ],
    )
    def test_names(self, place, text, names):
        expected = ["report.md", "docs/deep/a-b_c.txt", "größe.csv"] if names is None else names
        assert artefacts(text, place) == expected

    def test_absolute(self, place, tmp_path):
        (tmp_path / "alias").symlink_to(place)
        text = f"{place}/report.md {tmp_path}/secret {tmp_path}/alias/Makefile"
        assert artefacts(text, place) == ["report.md"]
        assert artefacts(text, tmp_path / "alias") == ["report.md", "Makefile"]

    def test_at_most_50(self, place):
        names = [f"f{number:02}" for number in range(60)]
        for name in names:
            (place / name).write_text("x")
        assert artefacts(" ".join(names), place) == names[:50]

    def test_looks_through_a_bounded_part(self, place):
        assert artefacts("x " * 200_000 + "report.md", place) == []
        assert artefacts(" ".join(f"n{number}" for number in range(2000)) + " report.md", place) == []

    def test_workspace_that_is_gone(self, tmp_path):
        assert artefacts("report.md", tmp_path / "gone") == []

    @given(st.text(st.characters() | st.sampled_from("./ \n\0~-"), max_size=80))
    @settings(max_examples=200, deadline=None)
    def test_of_anything_never_fails(self, text):
        assert artefacts(text, Path(__file__).parent) == [
            name for name in artefacts(text, Path(__file__).parent) if (Path(__file__).parent / name).is_file()
        ]
