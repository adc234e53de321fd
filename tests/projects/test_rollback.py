"""Roll back on real repositories: the ordinary case, every refusal, and what must not change."""

import contextlib
import json
import os
import random
import shutil
import subprocess
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest

from projects import rollback
from projects.rollback import Plan, Preview, Refused, Wanted
from tests.projects.files import write_prd
from tests.projects.repositories import PRD, commit, git, init, settled, state, tree, worked

pytestmark = pytest.mark.pure

AT = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture
def root(tmp_path):
    return worked(tmp_path / "demo")


def build(root, prd=PRD, **wanted):
    return rollback.build(root, prd, Wanted(**wanted), at=AT)


def roll_back(root, tmp_path, prd=PRD, **wanted):
    plan = build(root, prd, **wanted)
    saved = tmp_path / "home" / "1"
    rollback.save(root, plan, saved)
    rollback.carry_out(root, plan, saved)
    return plan, saved


def refused(root, prd=PRD, **wanted):
    """Return the first refusal, the same from preview and build, and see that neither touched anything."""
    before = state(root)
    seen = rollback.preview(root, prd, Wanted(**wanted))
    assert state(root) == before
    with pytest.raises(Refused) as caught:
        build(root, prd, **wanted)
    assert state(root) == before
    assert caught.value.code == seen.blockers[0].code
    assert caught.value.detail
    assert json.dumps(caught.value.extra)
    return caught.value


def codes(root, **wanted):
    return [refusal.code for refusal in rollback.preview(root, PRD, Wanted(**wanted)).blockers]


class TestOrdinary:
    def test_preview_tells_and_changes_nothing(self, root):
        before = state(root)
        seen = rollback.preview(root, PRD, Wanted())
        assert state(root) == before
        assert seen.blockers == ()
        assert (seen.head, seen.commit) == (git(root, "rev-parse", "HEAD"),) * 2
        assert seen.branch == "main"
        assert seen.subject == "feat: [US-002] The second"
        assert seen.author == "Agent"
        assert seen.at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert seen.parents == (git(root, "rev-parse", "HEAD~1"),)
        assert (seen.story, seen.story_title) == ("US-002", "Story 2")
        assert [(f.path, f.status, f.added, f.removed) for f in seen.files] == [
            ("src/app.py", "M", 0, 1),
            ("src/first.py", "A", 1, 0),
            ("src/second.py", "D", 0, 1),
        ]
        assert (seen.files_total, seen.added, seen.removed) == (3, 1, 2)
        assert "3 files changed" in seen.stat
        assert not seen.pushed

    def test_code_goes_back_and_bookkeeping_stays(self, root, tmp_path):
        old = git(root, "rev-parse", "HEAD")
        before = tree(root)
        plan, _ = roll_back(root, tmp_path)
        after = tree(root)
        assert git(root, "rev-parse", "HEAD") == plan.new
        assert git(root, "rev-parse", "HEAD^") == old
        assert (root / "src/app.py").read_text() == "one\ntwo\n"
        assert (root / "src/first.py").read_text() == "first\n"
        assert not (root / "src/second.py").exists()
        kept = [path for path in before if path.startswith("scripts")]
        assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
        assert git(root, "status", "--porcelain").splitlines() == [
            "M scripts/ralph/prd.json",
            " M scripts/ralph/progress.txt",
            "?? scripts/ralph/logs/",
        ]
        assert git(root, "diff", "HEAD~1", "HEAD", "--name-only", "--", "scripts") == ""

    def test_the_commit_says_what_it_does(self, root, tmp_path):
        plan, _ = roll_back(root, tmp_path)
        assert git(root, "log", "-1", "--format=%an %ae %cn %ce %at") == (
            f"Andon andon@localhost Andon andon@localhost {int(AT.timestamp())}"
        )
        assert git(root, "log", "-1", "--format=%s") == 'Roll back "feat: [US-002] The second"'
        assert git(root, "log", "-1", "--format=%(trailers)").splitlines() == [
            f"Andon-Rolls-Back: {plan.commit}",
            "Andon-Story: US-002",
        ]

    def test_nothing_of_ours_is_left_in_git(self, root, tmp_path):
        before = state(root)["git's own"]
        plan, _ = roll_back(root, tmp_path)
        new = set(state(root)["git's own"]) - set(before)
        assert {name for name in new if not name.startswith(("refs/andon", "logs"))} == set()
        assert git(root, "rev-parse", plan.backup_ref) == plan.head
        assert git(root, "fsck", "--strict") == ""

    def test_saved_is_private_and_complete(self, root, tmp_path):
        index = (root / ".git/index").read_bytes()
        notes = (root / "scripts/ralph/progress.txt").read_bytes()
        _, saved = roll_back(root, tmp_path)
        assert saved.stat().st_mode & 0o777 == 0o700
        assert (saved / "index").read_bytes() == index
        assert (saved / "bookkeeping/scripts/ralph/progress.txt").read_bytes() == notes
        assert (saved / "bookkeeping/scripts/ralph/logs/iteration-2.log").read_text() == "working\n"

    def test_staged_bookkeeping_stays_staged(self, root, tmp_path):
        git(root, "add", "scripts/ralph/prd.json", "scripts/ralph/logs")
        staged = git(root, "diff", "--cached")
        roll_back(root, tmp_path)
        assert git(root, "diff", "--cached") == staged

    def test_a_person_can_type_it_back(self, root, tmp_path):
        before = tree(root)
        plan, _ = roll_back(root, tmp_path)
        git(root, "checkout", "-q", plan.backup_ref, "--", ".")
        git(root, "rm", "-q", "-f", "src/first.py")
        git(root, "reset", "-q", "--soft", plan.backup_ref)
        prd = {path: value for path, value in before.items() if not path.startswith("scripts")}
        assert {path: value for path, value in tree(root).items() if not path.startswith("scripts")} == prd

    def test_reverting_ours_brings_it_back_too(self, root, tmp_path):
        before = tree(root)
        plan, _ = roll_back(root, tmp_path)
        git(root, "revert", "--no-edit", plan.new)
        assert tree(root) == before

    def test_undo_brings_all_back(self, root, tmp_path):
        before = settled(root)
        plan, saved = roll_back(root, tmp_path)
        rollback.undo(root, plan, saved)
        rollback.undo(root, plan, saved)
        assert settled(root) == before

    def test_prd_at_the_root(self, tmp_path):
        root = worked(tmp_path / "demo", "prd.json")
        before = tree(root)
        roll_back(root, tmp_path, Path("prd.json"))
        after = tree(root)
        for path in ("prd.json", "progress.txt", "logs/iteration-2.log"):
            assert after[path] == before[path]
        assert not (root / "src/second.py").exists()

    def test_without_a_prd_there_is_no_story(self, tmp_path):
        root = init(tmp_path / "demo")
        (root / "a").write_text("a")
        commit(root, "one")
        (root / "a").write_text("b")
        commit(root, "two")
        plan, _ = roll_back(root, tmp_path, None)
        assert plan.story == ""
        assert (root / "a").read_text() == "a"

    def test_tracked_ralph_folder_at_the_root_is_bookkeeping(self, root, tmp_path):
        (root / ".ralph").mkdir()
        (root / ".ralph/history.jsonl").write_text("1\n")
        commit(root, "feat: [US-002] more")
        (root / ".ralph/history.jsonl").write_text("1\n2\n")
        (root / "src/app.py").write_text("changed\n")
        git(root, "add", "src")
        commit(root, "feat: [US-002] yet more", add=False)
        roll_back(root, tmp_path)
        assert (root / ".ralph/history.jsonl").read_text() == "1\n2\n"

    def test_plan_survives_json(self, root):
        odd = os.fsencode(root) + b"/src/\xff\n\"'-\xc3\xa4"
        with open(odd, "wb") as file:
            file.write(b"x")
        commit(root, "feat: [US-002] odd")
        plan = build(root)
        text = json.dumps(plan.to_json())
        assert "\\ud" not in text
        assert Plan.from_json(json.loads(text)) == plan
        assert plan.raw_paths == [odd.removeprefix(os.fsencode(root) + b"/")]


class TestOlder:
    def test_an_older_commit_is_merged_out(self, root, tmp_path):
        (root / "src/third.py").write_text("third\n")
        git(root, "add", "src")
        commit(root, "feat: [US-003] The third", add=False)
        plan, _ = roll_back(root, tmp_path, commit="HEAD~1" and git(root, "rev-parse", "--short", "HEAD~1"))
        assert plan.story == "US-002"
        assert (root / "src/third.py").read_text() == "third\n"
        assert (root / "src/app.py").read_text() == "one\ntwo\n"
        assert git(root, "rev-list", "--count", "HEAD") == "5"

    def test_later_bookkeeping_is_no_conflict(self, root, tmp_path):
        commit(root, "chore: notes")
        (root / "src/other.py").write_text("other\n")
        write_prd(root, "passed", "passed", "passed")
        commit(root, "feat: [US-003] The third")
        before = (root / PRD).read_bytes()
        plan, _ = roll_back(root, tmp_path, commit=git(root, "rev-parse", "HEAD~2"))
        assert plan.story == "US-002"
        assert (root / PRD).read_bytes() == before
        assert git(root, "status", "--porcelain") == ""

    def test_conflict_names_paths(self, root):
        (root / "src/app.py").write_text("one\ntwo\n3\n")
        git(root, "add", "src")
        commit(root, "feat: [US-003] The third", add=False)
        refusal = refused(root, commit=git(root, "rev-parse", "HEAD~1"))
        assert (refusal.code, refusal.status) == ("conflict", 409)
        assert refusal.extra["paths"] == ["src/app.py"]

    def test_a_renamed_file_keeps_later_edits(self, tmp_path):
        root = worked(tmp_path / "demo")
        lines = [f"line {n}\n" for n in range(50)]
        (root / "src/long.py").write_text("".join(lines))
        git(root, "add", "src")
        commit(root, "base", add=False)
        git(root, "mv", "src/long.py", "src/renamed.py")
        commit(root, "feat: [US-002] rename", add=False)
        (root / "src/renamed.py").write_text("".join([*lines, "more\n"]))
        git(root, "add", "src")
        commit(root, "later", add=False)
        seen = rollback.preview(root, PRD, Wanted(commit=git(root, "rev-parse", "HEAD~1")))
        assert [(f.path, f.old_path, f.status) for f in seen.files] == [("src/long.py", "src/renamed.py", "R")]
        roll_back(root, tmp_path, commit=git(root, "rev-parse", "HEAD~1"))
        assert (root / "src/long.py").read_text() == "".join([*lines, "more\n"])
        assert not (root / "src/renamed.py").exists()


class TestRefusals:
    def test_not_a_repository(self, tmp_path):
        write_prd(tmp_path / "plain", "pending")
        with pytest.raises(Refused) as caught:
            build(tmp_path / "plain")
        assert (caught.value.code, caught.value.status) == ("not-a-git-repository", 400)
        seen = rollback.preview(tmp_path / "plain", PRD, Wanted())
        assert [b.code for b in seen.blockers] == ["not-a-git-repository"]
        assert {f.name for f in fields(Preview)} > {"head", "blockers"}

    def test_missing_directory(self, tmp_path):
        assert rollback.preview(tmp_path / "gone", PRD, Wanted()).blockers[0].code == "not-a-git-repository"

    def test_an_outer_repository_does_not_count(self, root):
        (root / "inner").mkdir()
        write_prd(root / "inner", "pending")
        with pytest.raises(Refused) as caught:
            build(root / "inner")
        assert caught.value.code == "not-a-git-repository"

    def test_an_empty_dot_git(self, root):
        shutil.rmtree(root / ".git")
        (root / ".git").mkdir()
        assert rollback.preview(root, PRD, Wanted()).blockers[0].code == "not-a-git-repository"

    def test_a_linked_dot_git(self, root, tmp_path):
        (root / ".git").rename(tmp_path / "moved")
        (root / ".git").symlink_to(tmp_path / "moved")
        assert rollback.preview(root, PRD, Wanted()).blockers[0].code == "not-a-git-repository"

    def test_a_bare_repository(self, tmp_path):
        init(tmp_path / "bare", "--bare")
        assert rollback.preview(tmp_path / "bare", PRD, Wanted()).blockers[0].code == "not-a-git-repository"

    def test_unborn(self, tmp_path):
        root = init(tmp_path / "demo")
        assert refused(root).code == "unborn-branch"

    def test_head_moved(self, root):
        refusal = refused(root, expected_head=git(root, "rev-parse", "HEAD~1"))
        assert refusal.code == "head-moved"
        assert refusal.extra == {"head": git(root, "rev-parse", "HEAD")}

    @pytest.mark.parametrize("length", [7, 12, 40])
    def test_expected_head_may_be_short(self, root, length):
        head = git(root, "rev-parse", "HEAD")
        assert build(root, expected_head=head[:length].upper()).head == head

    @pytest.mark.parametrize("expected", ["HEAD", "main", "--all", "abc", "x" * 40])
    def test_expected_head_is_hexadecimal(self, root, expected):
        assert refused(root, expected_head=expected).code == "head-moved"

    @pytest.mark.parametrize("name", ["main", "--all", "0" * 40, "dead", "HEAD~1", "a\nb", "\0"])
    def test_unknown_commit(self, root, name):
        assert refused(root, commit=name).code == "unknown-commit"

    def test_a_tree_is_no_commit(self, root):
        assert refused(root, commit=git(root, "rev-parse", "HEAD^{tree}")).code == "unknown-commit"

    def test_not_an_ancestor(self, root):
        git(root, "stash", "-q", "-u")
        git(root, "checkout", "-q", "-b", "side", "HEAD~1")
        (root / "side").write_text("side")
        side = commit(root, "feat: [US-002] side")
        git(root, "checkout", "-q", "main")
        git(root, "stash", "pop", "-q")
        assert refused(root, commit=side).code == "not-an-ancestor"

    def test_root_commit(self, root):
        assert refused(root, commit=git(root, "rev-parse", "HEAD~2")).code == "root-commit"

    def test_empty_commit(self, root):
        commit(root, "feat: [US-002] nothing", add=False)
        assert refused(root).code == "empty-commit"

    def test_bookkeeping_only_is_empty(self, root):
        commit(root, "chore: [US-002] notes")
        assert refused(root).code == "empty-commit"

    def test_detached(self, root):
        git(root, "checkout", "-q", "--detach")
        assert refused(root).code == "detached-head"

    @pytest.mark.parametrize("name", ["MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "BISECT_LOG", "BISECT_START"])
    def test_operation(self, root, name):
        (root / ".git" / name).write_text(git(root, "rev-parse", "HEAD") + "\n")
        assert refused(root).code == "operation-in-progress"

    @pytest.mark.parametrize("name", ["rebase-merge", "rebase-apply", "sequencer"])
    def test_operation_folder(self, root, name):
        (root / ".git" / name).mkdir()
        assert refused(root).code == "operation-in-progress"

    @pytest.mark.parametrize("words", [["merge"], ["cherry-pick"], ["revert", "-n"], ["rebase"], ["am"], ["bisect"]])
    def test_real_operations(self, root, words):
        git(root, "stash", "-q", "-u")
        git(root, "checkout", "-q", "-b", "side", "HEAD~1")
        (root / "src/app.py").write_text("side\n")
        side = commit(root, "feat: [US-002] side")
        patch = root.parent / "patch"
        patch.write_text(git(root, "format-patch", "-1", "--stdout") + "\n")
        git(root, "checkout", "-q", "main")
        if words == ["bisect"]:
            git(root, "bisect", "start", "HEAD", "HEAD~2")
        else:
            what = {"am": str(patch), "revert": "HEAD"}.get(words[0], side)
            git(root, *words, what, check=False)
        assert refused(root).code == "operation-in-progress"
        assert "operation-in-progress" in codes(root)

    def test_locked_index(self, root):
        (root / ".git/index.lock").touch()
        assert refused(root).code == "index-locked"
        assert (root / ".git/index.lock").exists()

    def test_own_rollback_is_not_rolled_back(self, root, tmp_path):
        plan, _ = roll_back(root, tmp_path)
        refusal = refused(root)
        assert refusal.code == "already-rolled-back"
        assert refusal.extra == {"commit": plan.commit}
        assert refused(root, commit=plan.commit).code == "already-rolled-back"

    def test_an_older_one_may_follow_our_own(self, root, tmp_path):
        plan, _ = roll_back(root, tmp_path)
        older = git(root, "rev-parse", f"{plan.commit}~1")
        write_prd(root, "passed", "pending", "pending")
        again, _ = roll_back(root, tmp_path / "two", commit=older)
        assert again.story == "US-001"
        assert (root / "src/app.py").read_text() == "one\n"
        assert not (root / "src/first.py").exists()

    def test_a_copied_trailer_is_not_ours(self, root):
        (root / "src/app.py").write_text("agent\n")
        git(root, "add", "src")
        head = git(root, "rev-parse", "HEAD")
        commit(root, f"feat: [US-002] agent\n\nAndon-Rolls-Back: {head}", add=False)
        assert build(root).story == "US-002"

    def test_shallow(self, root, tmp_path):
        clone = tmp_path / "clone"
        git(tmp_path, "clone", "-q", "--depth=1", f"file://{root}", str(clone))
        assert codes(clone) == ["shallow-clone"]
        assert refused(clone).code == "shallow-clone"

    def test_partial(self, root, tmp_path):
        git(root, "config", "uploadpack.allowFilter", "true")
        clone = tmp_path / "clone"
        git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{root}", str(clone))
        root.rename(tmp_path / "away")
        assert refused(clone).code == "partial-clone"

    def test_sparse(self, root):
        git(root, "sparse-checkout", "set", "--no-cone", "/*")
        assert refused(root).code == "sparse-checkout"

    def test_submodule(self, root, tmp_path):
        other = init(tmp_path / "other")
        commit(other, "one")
        git(root, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(other), "module")
        commit(root, "feat: [US-002] module")
        refusal = refused(root)
        assert refusal.code == "submodule-change"
        assert refusal.extra["paths"] == ["module"]

    def test_untracked_in_the_way(self, root):
        (root / "src/first.py").write_text("mine\n")
        refusal = refused(root)
        assert refusal.code == "would-overwrite"
        assert refusal.extra == {"paths": ["src/first.py"], "total": 1}

    def test_ignored_in_the_way(self, root):
        (root / ".gitignore").write_text("*.py\n")
        git(root, "commit", "-q", "-m", "ignore", "--", ".gitignore")
        (root / "src/first.py").write_text("mine\n")
        assert refused(root, commit=git(root, "rev-parse", "HEAD~1")).code == "would-overwrite"

    def test_ignored_folder_where_a_file_comes_back(self, tmp_path):
        root = worked(tmp_path / "demo")
        (root / "build").write_text("a file\n")
        git(root, "add", "-f", "build")
        commit(root, "one", add=False)
        git(root, "rm", "-q", "build")
        commit(root, "feat: [US-002] two", add=False)
        (root / "build").mkdir()
        (root / "build/out.o").write_text("x")
        assert refused(root).extra["paths"] == ["build"]

    def test_ignored_file_in_a_folder_that_becomes_a_file(self, tmp_path):
        root = worked(tmp_path / "demo")
        (root / "thing").write_text("a file\n")
        git(root, "add", "thing")
        commit(root, "one", add=False)
        (root / "thing").unlink()
        (root / "thing").mkdir()
        (root / "thing/a").write_text("a")
        git(root, "add", "thing")
        commit(root, "feat: [US-002] two", add=False)
        (root / "thing/b.cache").write_text("x")
        assert refused(root).extra["paths"] == ["thing/b.cache"]

    def test_link_where_a_folder_comes_back(self, root, tmp_path):
        (root / "lib").mkdir()
        (root / "lib/a").write_text("a")
        git(root, "add", "lib")
        commit(root, "one", add=False)
        git(root, "rm", "-q", "lib/a")
        commit(root, "feat: [US-002] two", add=False)
        (tmp_path / "elsewhere").mkdir()
        (root / "lib").symlink_to(tmp_path / "elsewhere")
        assert refused(root).extra["paths"] == ["lib"]

    @pytest.mark.parametrize("path", ["src/app.py", "README.md"])
    @pytest.mark.parametrize("staged", [True, False])
    def test_dirty_code(self, root, path, staged):
        (root / path).write_text("edited\n")
        if staged:
            git(root, "add", path)
        refusal = refused(root)
        assert refusal.code == "dirty-tree"
        assert refusal.extra == {"paths": [path], "total": 1}

    def test_deleted_code(self, root):
        (root / "README.md").unlink()
        assert refused(root).extra["paths"] == ["README.md"]

    def test_newly_staged_code(self, root):
        (root / "new.py").write_text("new")
        git(root, "add", "new.py")
        assert refused(root).extra["paths"] == ["new.py"]

    def test_changed_mode(self, root):
        (root / "README.md").chmod(0o755)
        assert refused(root).extra["paths"] == ["README.md"]

    def test_a_change_that_the_index_cannot_see(self, root):
        path = root / "src/app.py"
        git(root, "config", "core.trustctime", "false")
        os.utime(root / ".git/index", ns=(2 * 10**18, 2 * 10**18))
        times = path.stat()
        path.write_text("ONE\ntwo\nthree\n")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert refused(root).extra["paths"] == ["src/app.py"]

    def test_a_change_in_the_moment_of_the_index(self, root):
        git(root, "config", "core.trustctime", "false")
        path = root / "README.md"
        times = path.stat()
        os.utime(root / ".git/index", ns=(times.st_mtime_ns, times.st_mtime_ns))
        path.write_text("# Demi\n")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert refused(root).extra["paths"] == ["README.md"]

    @pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
    @pytest.mark.parametrize("edited", [True, False])
    def test_hidden_changes(self, root, flag, edited):
        git(root, "update-index", flag, "src/app.py")
        if edited:
            (root / "src/app.py").write_text("hidden work\n")
        assert refused(root).code == ("dirty-tree" if edited else "hidden-changes")

    def test_unmerged_bookkeeping(self, root):
        blob = git(root, "rev-parse", "HEAD:README.md")
        stages = "".join(f"100644 {blob} {n}\tscripts/ralph/prd.json\n" for n in (1, 2, 3))
        git(root, "update-index", "--index-info", input=f"0 {'0' * 40}\tscripts/ralph/prd.json\n{stages}".encode())
        assert refused(root).extra["paths"] == ["scripts/ralph/prd.json"]

    def test_story_unknown(self, root):
        git(root, "checkout", "-q", "--", "scripts")
        git(root, "commit", "-q", "--amend", "-m", "work")
        write_prd(root, "passed", "passed", "passed")
        refusal = refused(root)
        assert refusal.code == "story-unknown"
        assert set(refusal.extra["candidates"]) >= {"US-002", "US-003"}
        assert build(root, story="US-003").story == "US-003"

    def test_story_named_only_on_disk(self, root):
        git(root, "commit", "-q", "--amend", "-m", "work", "--no-verify")
        assert build(root).story == "US-002"

    def test_all_that_can_be_told_in_order(self, root):
        git(root, "commit", "-q", "--amend", "-m", "work")
        (root / "README.md").write_text("edited")
        (root / "src/first.py").write_text("mine")
        write_prd(root, "passed", "passed", "passed")
        assert codes(root, expected_head="0" * 40) == ["head-moved", "would-overwrite", "dirty-tree", "story-unknown"]


class TestMerges:
    @pytest.fixture
    def merged(self, root):
        commit(root, "chore: notes")
        git(root, "checkout", "-q", "-b", "side")
        (root / "side.py").write_text("side\n")
        commit(root, "side")
        git(root, "checkout", "-q", "main")
        (root / "main.py").write_text("main\n")
        commit(root, "main")
        git(root, "merge", "-q", "--no-ff", "-m", "feat: [US-002] merge", "side")
        return root

    def test_merge_is_refused(self, merged):
        refusal = refused(merged)
        assert refusal.code == "merge-commit"
        assert len(refusal.extra["parents"]) == 2

    def test_mainline(self, merged, tmp_path):
        roll_back(merged, tmp_path, mainline=1)
        assert (merged / "main.py").exists()
        assert not (merged / "side.py").exists()

    def test_the_other_line(self, merged, tmp_path):
        roll_back(merged, tmp_path, mainline=2)
        assert not (merged / "main.py").exists()
        assert (merged / "side.py").exists()

    @pytest.mark.parametrize("mainline", [0, 3, -1])
    def test_no_such_parent(self, merged, mainline):
        assert refused(merged, mainline=mainline).code == "no-such-parent"

    def test_octopus(self, merged, tmp_path):
        for name in ("x", "y"):
            git(merged, "checkout", "-q", "-b", name, "main")
            (merged / name).write_text(name)
            commit(merged, name)
        git(merged, "checkout", "-q", "main")
        git(merged, "merge", "-q", "-m", "feat: [US-002] octopus", "x", "y", "--no-ff")
        assert refused(merged).code == "merge-commit"
        roll_back(merged, tmp_path, mainline=1)
        assert not (merged / "x").exists()
        assert not (merged / "y").exists()


class TestPushed:
    def test_an_upstream_has_it(self, root, tmp_path):
        remote = init(tmp_path / "remote", "--bare")
        git(root, "remote", "add", "origin", str(remote))
        git(root, "push", "-q", "-u", "origin", "main")
        git(root, "remote", "set-head", "origin", "main")
        seen = rollback.preview(root, PRD, Wanted())
        assert (seen.pushed, seen.upstreams) == (True, ("origin/main",))

    def test_no_upstream_has_it(self, root, tmp_path):
        remote = init(tmp_path / "remote", "--bare")
        git(root, "remote", "add", "origin", str(remote))
        git(root, "push", "-q", "origin", "HEAD~1:refs/heads/main")
        assert rollback.preview(root, PRD, Wanted()).upstreams == ()


class TestMeanwhile:
    """What happens between the plan and the deed is refused, and nothing is lost by the undo after it."""

    @pytest.mark.parametrize(
        ("what", "code", "extra"),
        [
            ("edit", "dirty-tree", {"paths": ["src/app.py"], "total": 1}),
            ("block", "would-overwrite", {"paths": ["src/first.py"], "total": 1}),
            ("commit", "head-moved", None),
            ("switch", "head-moved", None),
        ],
    )
    def test_after_saving(self, root, tmp_path, what, code, extra):
        plan, saved = build(root), tmp_path / "saved"
        rollback.save(root, plan, saved)
        match what:
            case "edit":
                (root / "src/app.py").write_text("work of a moment ago\n")
            case "block":
                (root / "src/first.py").write_text("mine\n")
            case "commit":
                commit(root, "meanwhile")
            case "switch":
                git(root, "checkout", "-q", "-b", "other")
        before = state(root)
        with pytest.raises(Refused) as caught:
            rollback.carry_out(root, plan, saved)
        assert caught.value.code == code
        told = extra or {"head": git(root, "rev-parse", "HEAD")}
        assert caught.value.extra == told
        assert state(root) == before
        assert rollback.resume(root, plan, saved) == ("moved" if what == "commit" else "undone")
        assert tree(root) == before["tree"]
        assert (root / ".git/index").read_bytes() == before["index"]

    def test_another_git_holds_the_index(self, root, tmp_path):
        plan, saved = build(root), tmp_path / "saved"
        rollback.save(root, plan, saved)
        (root / ".git/index.lock").write_bytes(b"theirs")
        before = state(root)
        for act in (rollback.carry_out, rollback.resume, rollback.undo):
            with pytest.raises(Refused) as caught:
                act(root, plan, saved)
            assert caught.value.code == "index-locked"
            assert state(root) == before

    def test_saving_after_an_edit(self, root, tmp_path):
        plan = build(root)
        (root / "src/app.py").unlink()
        with pytest.raises(Refused) as caught:
            rollback.save(root, plan, tmp_path / "saved")
        assert caught.value.code == "dirty-tree"

    def test_resume_before_anything_was_saved(self, root, tmp_path):
        before = settled(root)
        plan = build(root)
        assert rollback.resume(root, plan, tmp_path / "saved") == "undone"
        assert settled(root) == before


def some_state(root, seed):
    """Bring a repository into a state that the seed chooses."""
    chance = random.Random(seed)
    acts = {
        "edit": lambda: (root / "src/app.py").write_text(f"{seed}\n"),
        "stage": lambda: git(root, "add", "-A"),
        "code untracked": lambda: (root / "src/new.py").write_text("new\n"),
        "in the way": lambda: (root / "src/first.py").write_text("mine\n"),
        "ignored": lambda: (root / "x.cache").write_text("x"),
        "notes": lambda: (root / "scripts/ralph/progress.txt").write_text(f"notes {seed}\n"),
        "stage notes": lambda: git(root, "add", "scripts"),
        "commit notes": lambda: git(root, "commit", "-q", "--allow-empty", "-m", "chore", "--", "scripts"),
        "commit": lambda: commit(root, f"feat: [US-00{1 + seed % 3}] more"),
        "remove": lambda: (root / "README.md").unlink(missing_ok=True),
        "detach": lambda: git(root, "checkout", "-q", "--detach"),
        "flip": lambda: write_prd(root, *chance.choices(["passed", "pending", "failed"], k=3)),
        "touch": lambda: os.utime(root / "src/app.py", (seed, seed)),
        "empty folder": lambda: (root / "src/first").mkdir(exist_ok=True),
    }
    names = chance.choices([*acts, "commit", "notes", "flip", "ignored", "stage notes"], k=chance.randint(0, 4))
    for name in names:
        acts[name]()
    history = git(root, "rev-list", "HEAD").split()
    return {"commit": chance.choice([*[""] * 6, *history]), "story": chance.choice(["", "US-001", "US-001", "US-009"])}


@pytest.mark.parametrize("seed", range(60))
def test_refused_or_done_and_undone(root, tmp_path, seed):
    """Whatever the state: a refusal changes nothing, and what is done keeps the loop's files and can be undone."""
    wanted = some_state(root, seed)
    before, coarse = state(root), settled(root)
    seen = rollback.preview(root, PRD, Wanted(**wanted))
    assert state(root) == before
    if seen.blockers:
        assert refused(root, **wanted).code == seen.blockers[0].code
        return
    plan, saved = roll_back(root, tmp_path, **wanted)
    after = settled(root)
    kept = {path: value for path, value in before["tree"].items() if path.startswith("scripts")}
    assert {path: value for path, value in after["tree"].items() if path.startswith("scripts")} == kept
    touched = set(plan.paths)
    apart = {p for p in {*before["tree"], *after["tree"]} if before["tree"].get(p) != after["tree"].get(p)}
    assert apart == touched
    assert git(root, "diff", "--name-only", plan.head, plan.new).splitlines() == sorted(touched)
    rollback.undo(root, plan, saved)
    assert settled(root) == coarse


def test_a_working_git_after_all(root, tmp_path):
    """The ordinary commands of an agent work on what a rollback leaves."""
    roll_back(root, tmp_path)
    (root / "src/again.py").write_text("again\n")
    commit(root, "feat: [US-002] again")
    with contextlib.suppress(subprocess.CalledProcessError):
        git(root, "gc", "-q")
    assert git(root, "status", "--porcelain") == ""
    assert git(root, "fsck", "--strict") == ""
