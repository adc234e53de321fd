"""git with every guard up, against the real one."""

import os
import time
from pathlib import Path

import pytest

from projects import git
from projects.git import GitError, run
from tests.running import wait_for

pytestmark = pytest.mark.pure


def is_dead(pid):
    try:
        return ") Z " in Path("/proc", pid, "stat").read_text()
    except OSError:
        return True


@pytest.fixture
def repository(tmp_path):
    top = tmp_path / "repository"
    top.mkdir()
    run(["init", "-q", "--initial-branch=main", "--template="], top)
    (top / "a.txt").write_text("one\n")
    run(["add", "-A"], top)
    run(["commit", "-q", "-m", "first"], top)
    return top


def ways_to(program, repository):
    """An executable in the repository that leaves a file behind when somebody runs it."""
    script = repository.parent / "trap"
    script.write_text(f"#!/bin/sh\ntouch '{repository.parent}/sprung'\n{program}\n")
    script.chmod(0o755)
    return script


class TestRun:
    def test_returns_bytes(self, repository):
        assert run(["show", "HEAD:a.txt"], repository) == b"one\n"

    def test_input_reaches_it(self, repository):
        blob = run(["hash-object", "-w", "--stdin"], repository, input=b"\xff\n").decode().strip()
        assert run(["cat-file", "blob", blob], repository) == b"\xff\n"

    def test_no_input_is_an_empty_one(self, repository):
        assert run(["hash-object", "--stdin"], repository).strip() == b"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"

    def test_what_it_printed_before_it_said_no(self, repository):
        run(["config", "alias.half", "!echo half; exit 1"], repository)
        with pytest.raises(GitError) as caught:
            run(["half"], repository)
        assert (caught.value.returncode, caught.value.stdout) == (1, b"half\n")

    def test_killed(self, repository, monkeypatch, tmp_path):
        program = tmp_path / "bin/git"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\nkill -9 $$\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        with pytest.raises(GitError, match="git status was killed by signal 9") as caught:
            run(["status"], repository)
        assert caught.value.returncode == -9

    def test_version(self, tmp_path, repository):
        assert git.version(repository) >= (2, 38)

    def test_it_inherits_only_what_it_is_given(self, repository, tmp_path):
        run(["config", "alias.descriptors", "!ls -l /proc/self/fd"], repository)
        with (tmp_path / "lock").open("w") as file:
            assert file.name in run(["descriptors"], repository, keep=[file.fileno()]).decode()
            assert file.name not in run(["descriptors"], repository).decode()

    def test_a_refusal_tells_what_and_why(self, repository):
        with pytest.raises(GitError) as caught:
            run(["show", "nowhere"], repository)
        assert caught.value.command == ("show", "nowhere")
        assert caught.value.returncode == 128
        assert "nowhere" in caught.value.stderr
        assert "git show ended with 128" in str(caught.value)

    @pytest.mark.parametrize("args", [["log", "a\0b"], ["status"]])
    def test_not_started(self, tmp_path, args):
        with pytest.raises(GitError) as caught:
            run(args, tmp_path / "gone")
        assert caught.value.returncode is None


class TestGuards:
    def test_identity_is_fixed(self, repository, monkeypatch):
        monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
        run(["config", "author.name", "Config"], repository)
        run(["commit", "-q", "--allow-empty", "-m", "second"], repository)
        shown = run(["log", "-1", "--format=%an %ae %cn %ce"], repository).decode().strip()
        assert shown == f"{git.NAME} {git.EMAIL} {git.NAME} {git.EMAIL}"

    def test_the_caller_may_name_an_author_and_an_index(self, repository, tmp_path):
        index = tmp_path / "index"
        env = {"GIT_INDEX_FILE": str(index), "GIT_AUTHOR_NAME": "Demo"}
        run(["read-tree", "HEAD"], repository, env=env)
        assert index.exists()
        run(["commit", "-q", "--allow-empty", "-m", "x"], repository, env=env)
        assert run(["log", "-1", "--format=%an"], repository) == b"Demo\n"

    def test_nothing_is_inherited(self, repository, tmp_path, monkeypatch):
        for name, value in {
            "GIT_DIR": str(tmp_path / "other"),
            "GIT_WORK_TREE": str(tmp_path),
            "GIT_INDEX_FILE": str(tmp_path / "other-index"),
            "GIT_CONFIG_COUNT": "nonsense",
            "GIT_TRACE": str(tmp_path / "trace"),
            "LC_ALL": "de_DE.UTF-8",
        }.items():
            monkeypatch.setenv(name, value)
        assert Path(run(["rev-parse", "--show-toplevel"], repository).decode().strip()) == repository
        assert not (tmp_path / "trace").exists()

    def test_an_outer_repository_is_not_found(self, repository):
        (repository / "inner").mkdir()
        with pytest.raises(GitError, match="not a git repository"):
            run(["status"], repository / "inner")

    def test_hooks_do_not_run(self, repository):
        (repository / ".git" / "hooks").mkdir(exist_ok=True)
        for hook in ("pre-commit", "post-commit", "commit-msg", "reference-transaction"):
            (repository / ".git" / "hooks" / hook).symlink_to(ways_to("exit 1", repository))
        run(["commit", "-q", "--allow-empty", "-m", "x"], repository)
        assert not (repository.parent / "sprung").exists()

    @pytest.mark.parametrize("key", ["core.hooksPath", "core.fsmonitor", "core.editor", "core.pager"])
    def test_configured_programs_do_not_run(self, repository, key):
        trap = ways_to("exit 1", repository)
        run(["config", key, str(trap.parent if key == "core.hooksPath" else trap)], repository)
        (repository / "a.txt").write_text("two\n")
        run(["status"], repository)
        run(["commit", "-q", "-a", "--amend"], repository)
        assert not (repository.parent / "sprung").exists()

    def test_nothing_is_signed(self, repository):
        run(["config", "commit.gpgSign", "true"], repository)
        run(["config", "gpg.program", str(ways_to("exit 1", repository))], repository)
        run(["commit", "-q", "--allow-empty", "-m", "x"], repository)
        assert not (repository.parent / "sprung").exists()

    def test_nobody_is_asked(self, repository):
        run(["config", "credential.helper", ""], repository)
        with pytest.raises(GitError):
            run(["ls-remote", "http://127.0.0.1:9/x"], repository, timeout_s=10)

    def test_status_leaves_the_index_alone(self, repository):
        index = repository / ".git" / "index"
        before = index.read_bytes()
        os.utime(repository / "a.txt", (1, 1))
        run(["status", "--porcelain"], repository)
        assert index.read_bytes() == before


class TestDeadline:
    def test_the_whole_group_is_killed(self, repository, tmp_path):
        run(["config", "alias.hang", f"!sh -c 'sleep 60 & echo $! > {tmp_path}/pid; wait'"], repository)
        began = time.monotonic()
        with pytest.raises(GitError, match="timed out") as caught:
            run(["hang"], repository, timeout_s=0.5)
        assert time.monotonic() - began < 5
        assert caught.value.returncode is None
        sleeper = Path("/proc", (tmp_path / "pid").read_text().strip())
        for _ in range(100):
            if not sleeper.exists() or ") Z " in (sleeper / "stat").read_text():
                return
            time.sleep(0.02)
        pytest.fail("a grandchild outlived the deadline")

    def test_a_pipe_that_git_waits_for(self, repository):
        os.mkfifo(repository / ".gitattributes")
        with pytest.raises(GitError, match="timed out"):
            run(["check-attr", "filter", "a.txt"], repository, timeout_s=0.5)

    def test_a_group_that_holds_the_pipe_after_its_leader(self, repository):
        run(["config", "alias.leave", "!sleep 60 & exit 0"], repository)
        with pytest.raises(GitError, match="timed out"):
            run(["leave"], repository, timeout_s=0.5)


class TestMuch:
    """What it may print, and what it is given to read."""

    @pytest.mark.parametrize("stream", ["", ">&2"])
    def test_without_end(self, repository, tmp_path, stream):
        run(["config", "alias.flood", f"!echo $$ > {tmp_path}/pid; exec yes {stream}"], repository)
        with pytest.raises(GitError, match="printed more than 1048576 bytes") as caught:
            run(["flood"], repository, limit=git.STDERR_BYTES)
        assert caught.value.returncode is None
        assert wait_for(lambda: is_dead((tmp_path / "pid").read_text().strip()), 30)

    def test_as_much_as_it_may(self, repository):
        assert run(["show", "HEAD:a.txt"], repository, limit=4) == b"one\n"
        with pytest.raises(GitError, match="printed more than 3 bytes"):
            run(["show", "HEAD:a.txt"], repository, limit=3)

    def test_both_ways_at_once(self, repository):
        """It answers before it was told all: whoever only writes, or only reads, waits for ever."""
        asked = b"HEAD:a.txt\n" * 20_000
        out = run(["cat-file", "--batch-check"], repository, input=asked)
        assert out.count(b"blob 4\n") == 20_000

    def test_what_it_does_not_read_is_no_error(self, repository):
        run(["config", "alias.deaf", "!exec <&-; echo done"], repository)
        assert run(["deaf"], repository, input=b"x" * 1_000_000) == b"done\n"
