"""The log of a task's worker over REST: its end, never the whole of it, and nothing that merely lies in its place."""

import os
from pathlib import Path

import pytest

from kanban.api import tasks as module
from kanban.models import Run
from kanban.schemas import TaskLogOut
from tests.kanban import rows
from tests.kanban.asking import refused


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "LOG_FOLDER", tmp_path)
    return tmp_path


@pytest.fixture
def logged(folder):
    """Return a run whose worker has printed something."""

    def make(content: bytes) -> Run:
        run = rows.started()
        (folder / rows.process_of(run).log_name).write_bytes(content)
        return run

    return make


def test_a_task_that_never_ran_has_no_log(ask, folder):
    made = rows.task()
    found = ask().get(f"/tasks/{made.pk}/log").json()
    TaskLogOut.model_validate(found)
    assert found == {
        "task_id": made.pk, "path": "", "exists": False, "size_bytes": 0, "content": "", "truncated": False,
    }  # fmt: skip


def test_a_worker_that_has_printed_nothing_yet(ask, folder):
    run = rows.claimed()
    found = ask().get(f"/tasks/{run.task_id}/log").json()
    assert (found["exists"], found["path"]) == (False, rows.process_of(run).log_path)


def test_the_whole_of_a_short_log(ask, logged):
    run = logged("one\nzwei ä\n".encode())
    found = ask("viewer").get(f"/tasks/{run.task_id}/log").json()
    assert found["path"] == f"logs/services/{rows.process_of(run).log_name}"
    assert (found["content"], found["size_bytes"], found["truncated"]) == ("one\nzwei ä\n", 12, False)


@pytest.mark.parametrize(
    ("tail", "content", "truncated"),
    [
        (1, "\n", True),
        (3, "ef\n", True),
        # On a line's beginning nothing is dropped.
        (4, "def\n", True),
        # A cut line is dropped, as something remains.
        (6, "def\n", True),
        (8, "abc\ndef\n", False),
        (2_000_000, "abc\ndef\n", False),
    ],
)
def test_the_end_of_a_log(ask, logged, tail, content, truncated):
    run = logged(b"abc\ndef\n")
    found = ask().get(f"/tasks/{run.task_id}/log?tail={tail}").json()
    assert (found["content"], found["truncated"]) == (content, truncated)


def test_a_log_without_a_line_end_is_shown_cut(ask, logged):
    run = logged("äöü".encode())
    assert ask().get(f"/tasks/{run.task_id}/log?tail=3").json()["content"] == "ü"


def test_what_is_not_utf_8_harms_nobody(ask, logged):
    run = logged(b"\xff\x00\x1b[2J<script>\n")
    assert ask().get(f"/tasks/{run.task_id}/log").json()["content"] == "\ufffd\x00\x1b[2J<script>\n"


@pytest.mark.parametrize("query", ["tail=0", "tail=-1", "tail=2000001", "tail=x", "run=0", "run=x", f"run={1 << 40}"])
def test_nonsense_is_refused(ask, query):
    refused(ask().get(f"/tasks/{rows.task().pk}/log?{query}"), 422, "invalid-request")


def test_an_earlier_run_has_its_own(ask, logged, folder):
    run = logged(b"first\n")
    rows.ended(run, 3)
    second = rows.started(rows.fresh(run.task))
    (folder / rows.process_of(second).log_name).write_bytes(b"second\n")
    asker = ask()
    assert asker.get(f"/tasks/{run.task_id}/log").json()["content"] == "second\n"
    assert asker.get(f"/tasks/{run.task_id}/log?run=1").json()["content"] == "first\n"
    refused(asker.get(f"/tasks/{run.task_id}/log?run=3"), 404, "not-found")


def test_a_log_outlives_its_process(ask, logged):
    run = logged(b"still here\n")
    rows.ended(run, 3)
    rows.process_of(run).delete()
    assert ask().get(f"/tasks/{run.task_id}/log").json()["content"] == "still here\n"


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "logs/services/../x", "logs/services/", "x"])
def test_no_path_of_a_row_leads_out_of_the_logs(ask, folder, path):
    run = rows.pulled()
    Run.objects.filter(pk=run.pk).update(log_path=path)
    found = ask().get(f"/tasks/{run.task_id}/log").json()
    assert (found["exists"], found["content"]) == (False, "")


def test_what_lies_in_the_place_of_a_log_is_not_read(ask, folder):
    run = rows.started()
    place = folder / rows.process_of(run).log_name
    secret = folder / "secret"
    secret.write_text("secret")
    place.symlink_to(secret)
    asker = ask()
    assert asker.get(f"/tasks/{run.task_id}/log").json()["exists"] is False
    place.unlink()
    os.mkfifo(place)
    assert asker.get(f"/tasks/{run.task_id}/log").json()["exists"] is False
