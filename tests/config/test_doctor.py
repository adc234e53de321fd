"""What doctor says of installations that are well and of broken ones."""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import uuid
from datetime import timedelta
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.core.management import call_command

from config import doctor
from config.doctor import FAIL, OK, WARN, Finding, Installation
from tests.running import Up, free_port

SERVER = os.environ.get("ANDON_TEST_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres")
EMBEDDED = {"DATABASE_URL": "", "REDIS_URL": ""}


def run(check, now) -> list[Finding]:
    return list(check(Installation(now)))


def one(check, now) -> Finding:
    [found] = run(check, now)
    return found


@pytest.fixture
def ticking(db, settings, now):
    from services.models import WorkerHost

    return WorkerHost.objects.create(
        node=settings.ANDON_NODE,
        host_name="here",
        status="ticking",
        pid=77,
        start_ticks=1,
        boot_id="b",
        version="1",
        started_at=now,
        tick_at=now,
        told_at=now,
        watching="inotify",
    )


def change(row, **fields) -> None:
    type(row).objects.filter(pk=row.pk).update(**fields)


def test_this_machine_will_do(now, home, settings):
    settings.ANDON_HOME.chmod(0o700)
    (home / "secret_key").touch(mode=0o600)
    for check in (doctor.platform, doctor.versions, doctor.home, doctor.disk, doctor.git):
        assert one(check, now).status == OK


def test_anything_but_linux_fails(now, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert one(doctor.platform, now).status == FAIL


def test_no_pidfd_fails(now, monkeypatch):
    def refuse(pid):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    found = one(doctor.platform, now)
    assert found.status == FAIL
    assert "seccomp" in found.next_step


def test_an_old_sqlite_fails_where_it_is_the_database(now, monkeypatch):
    from django.db import connection

    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 37, 2))
    assert one(doctor.versions, now).status == (FAIL if connection.vendor == "sqlite" else OK)


def test_a_home_that_others_can_read_fails(now, home):
    home.chmod(0o755)
    (home / "secret_key").touch()
    (home / "secret_key").chmod(0o640)
    steps = [found.next_step for found in run(doctor.home, now) if found.status == FAIL]
    assert steps[0] == f"chmod 700 {home}"
    assert steps[1].startswith(f"chmod 600 {home}/secret_key")


def test_a_home_without_its_key_fails(now, home):
    home.chmod(0o700)
    assert run(doctor.home, now)[0].status == FAIL


def test_a_home_that_cannot_be_written_fails(now, home, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    home.chmod(0o700)
    (home / "secret_key").touch(mode=0o600)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    found = one(doctor.home, now)
    assert (found.status, "Read-only" in found.detail) == (FAIL, True)


@pytest.mark.parametrize(("free_mib", "status"), [(5000, OK), (1023, WARN), (99, FAIL)])
def test_little_room_warns_and_none_fails(now, monkeypatch, free_mib, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_mib * 1024**2))
    assert one(doctor.disk, now).status == status


def test_a_worker_that_ticks_is_well(ticking, now):
    assert one(doctor.worker, now).status == OK
    assert one(doctor.worker, now + timedelta(seconds=15)).status == OK


def test_a_worker_that_does_not_tick_fails(ticking, now):
    found = one(doctor.worker, now + timedelta(seconds=16))
    assert found.status == FAIL
    assert "manage.py up" in found.next_step
    change(ticking, status="silent")
    assert one(doctor.worker, now).status == FAIL


def test_a_stopped_worker_and_none_at_all_warn(ticking, now):
    change(ticking, status="stopped")
    found = one(doctor.worker, now)
    assert (found.status, found.next_step) == (WARN, "start it with manage.py up")
    ticking.delete()
    assert one(doctor.worker, now).status == WARN


def test_polling_names_the_sysctl(ticking, now):
    change(ticking, watching="polling")
    found = run(doctor.worker, now)
    assert [row.status for row in found] == [OK, WARN]
    assert "fs.inotify.max_user_watches" in found[1].next_step


def test_other_machines_that_went_silent_are_named(ticking, now):
    ticking.pk = None
    ticking.node, ticking.host_name, ticking.tick_at = "other", "shed", now - timedelta(minutes=5)
    ticking.save(force_insert=True)
    found = run(doctor.worker, now)
    assert found[-1].status == WARN
    assert "other on shed" in found[-1].detail


def test_watches_are_compared_with_the_kernels_limit(now, make_project, tmp_path, monkeypatch):
    for name in ("a", "b"):
        make_project(name)
    monkeypatch.setattr(doctor, "INOTIFY", tmp_path)
    (tmp_path / "max_user_instances").write_text("128\n")
    (tmp_path / "max_user_watches").write_text("8192\n")
    assert one(doctor.inotify, now).status == OK
    (tmp_path / "max_user_watches").write_text("4\n")
    found = one(doctor.inotify, now)
    assert found.status == WARN
    assert "sysctl fs.inotify.max_user_watches=524288" in found.next_step


def test_each_workspace_root_is_told(now, make_project, workspace, tmp_path, settings):
    settings.ANDON_WORKSPACE = [workspace, tmp_path / "absent"]
    assert [found.status for found in run(doctor.workspace, now)] == [WARN, FAIL]
    make_project("demo")
    (workspace / "no-project").mkdir()
    found = run(doctor.workspace, now)[0]
    assert (found.status, found.detail) == (OK, f"{workspace}: 1 projects")


def test_a_root_that_cannot_be_read_fails(now, workspace, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert one(doctor.workspace, now).status == FAIL


@pytest.mark.parametrize(
    ("answer", "status"), [("2.38.0", OK), ("2.50.1.windows.1", OK), ("3.0", OK), ("2.37.9", FAIL), ("?", FAIL)]
)
def test_git_must_be_new_enough(now, tmp_path, monkeypatch, answer, status):
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\necho 'git version {answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert one(doctor.git, now).status == status


def test_no_git_fails(now, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = one(doctor.git, now)
    assert (found.status, found.next_step) == (FAIL, "install git 2.38 or newer")


def test_projects_with_an_error_are_counted_and_three_named(now, imported):
    from projects.models import Project

    for name in ("d", "b", "a", "c", "fine"):
        imported(name)
    assert one(doctor.projects, now).status == OK
    Project.objects.exclude(slug="fine").update(error="prd.json: no JSON")
    found = one(doctor.projects, now)
    assert (found.status, found.detail) == (WARN, "4 projects cannot be read: a, b, c")


def test_nobody_able_to_sign_in_fails(now, make_user):
    assert "manage.py up" in one(doctor.users, now).next_step
    user = make_user("admin", "", password=None)
    found = one(doctor.users, now)
    assert (found.status, found.next_step) == (FAIL, "manage.py sign-in-link admin")
    make_user("gone", "admin").__class__.objects.filter(username="gone").update(is_active=False)
    assert one(doctor.users, now).status == FAIL
    user.set_password("correct-horse-7")
    user.save()
    assert one(doctor.users, now).status == OK


def test_a_sign_in_link_is_a_way_in_until_it_expires(now, make_user):
    from projects import access
    from projects.events import By

    access.invite(make_user("admin", "", password=None), by=By("command", "admin"), now=now)
    assert one(doctor.users, now).status == OK
    assert one(doctor.users, now + timedelta(days=2)).status == FAIL


def test_a_log_that_is_never_pruned_warns(db, now):
    from projects.models import Event

    assert one(doctor.events, now).detail.startswith("about 0 events")
    for number in (5, 7):
        Event.objects.create(id=number, at=now, kind="a.b", subject="s")
    assert one(doctor.events, now).detail == "about 3 events, the last is 7"
    Event.objects.create(id=3_000_000, at=now, kind="a.b", subject="s")
    assert one(doctor.events, now).status == WARN


def test_pages_that_others_can_reach_want_tls(now, settings):
    from dataclasses import replace

    assert one(doctor.bind, now).status == OK
    settings.ANDON = replace(settings.ANDON, bind="0.0.0.0")
    settings.ANDON_BIND = "0.0.0.0"
    found = one(doctor.bind, now)
    assert found.status == WARN
    assert "TLS in front" in found.next_step


def test_redis_is_asked_where_it_is_set(now, settings):
    settings.REDIS_URL = ""
    assert one(doctor.redis, now).status == OK
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    found = one(doctor.redis, now)
    assert (found.status, found.next_step) == (FAIL, "start Redis or correct REDIS_URL")
    try:
        socket.create_connection(("127.0.0.1", 6379), timeout=1).close()
    except OSError:
        pytest.skip("no Redis answers on 127.0.0.1:6379: install redis-server and start it, as .ci/run does")
    settings.REDIS_URL = "redis://127.0.0.1:6379/0"
    assert one(doctor.redis, now).status == OK


def test_a_check_that_fails_is_a_line_and_stops_no_other(now, monkeypatch):
    def explode(_):
        yield Finding("", OK, "first")
        raise RuntimeError("boom\nwith \x1b[31mcolours\x00 and \udcff")

    def well(_):
        yield Finding("", OK, "still here")

    monkeypatch.setattr(doctor, "CHECKS", (("explode", explode), ("well", well)))
    first, failed, last = doctor.examine(now)
    assert (first.status, last.detail) == (OK, "still here")
    assert (failed.check, failed.status) == ("explode", FAIL)
    assert failed.detail == "this check failed: RuntimeError: boom with ?[31mcolours? and ?"
    assert failed.next_step


def test_the_command_prints_a_line_a_finding_and_fails_with_them(monkeypatch):
    findings = [Finding("a", OK, "fine"), Finding("b", WARN, "hm", "do this")]
    monkeypatch.setattr(doctor, "examine", lambda now: findings)
    out = StringIO()
    call_command("doctor", stdout=out)
    assert out.getvalue() == "✓ ok   a         fine\n! warn b         hm -> do this\n"
    findings.append(Finding("c", FAIL, "bad", "do that"))
    out = StringIO()
    with pytest.raises(SystemExit) as end:
        call_command("doctor", "--json", stdout=out)
    assert end.value.code == 1
    assert json.loads(out.getvalue())[2] == {
        "check": "c",
        "status": "fail",
        "detail": "bad",
        "next_step": "do that",
    }


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A migrated database with somebody who can sign in."""
    up = Up(tmp_path_factory.mktemp("template"), env=EMBEDDED)
    up.manage("migrate", "-v0")
    path = up.home / "andon.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(
            "INSERT INTO auth_user (username, password, is_active, is_superuser, is_staff, first_name, last_name, "
            "email, date_joined) VALUES ('a', 'md5$x$y', 1, 1, 1, '', '', '', '2026-01-01')"
        )
        database.commit()
        database.execute("PRAGMA journal_mode=WAL")
    return path


@pytest.fixture
def installation(tmp_path, template) -> Up:
    up = Up(tmp_path, env=EMBEDDED)
    up.home.mkdir(mode=0o700)
    shutil.copy(template, up.home / "andon.sqlite3")
    return up


def diagnose(up: Up) -> tuple[int, dict[str, list[dict]]]:
    """Run the command; whatever is wrong, it ends with 0 or 1 and says everything as JSON."""
    done = up.manage("doctor", "--json", check=False)
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    found: dict[str, list[dict]] = {}
    for row in json.loads(done.stdout):
        assert set(row) == {"check", "status", "detail", "next_step"}
        assert row["detail"]
        assert bool(row["next_step"]) == (row["status"] != OK)
        assert "this check failed" not in row["detail"]
        found.setdefault(row["check"], []).append(row)
    assert set(found) == {name for name, _ in doctor.CHECKS}
    return done.returncode, found


@pytest.mark.once
def test_a_healthy_home_ends_with_0(installation):
    code, found = diagnose(installation)
    assert code == 0
    assert [row["status"] for row in found["database"]] == [OK, OK, OK]
    assert "sound" in found["database"][0]["detail"]
    assert found["worker"][0]["status"] == WARN


@pytest.mark.once
def test_a_missing_database_is_said_and_not_made(installation):
    database = installation.home / "andon.sqlite3"
    database.unlink()
    code, found = diagnose(installation)
    assert code == 1
    assert found["database"][0]["next_step"].endswith("manage.py up")
    assert not database.exists()
    for name in ("worker", "projects", "users", "events"):
        assert found[name][0]["next_step"] == "mend the database first"
    assert found["git"][0]["status"] == OK


@pytest.mark.once
def test_a_locked_database_is_said_within_seconds(installation):
    with contextlib.closing(sqlite3.connect(installation.home / "andon.sqlite3")) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        code, found = diagnose(installation)
    assert code == 1
    assert "locked" in found["database"][0]["detail"]
    assert "fuser" in found["database"][0]["next_step"]


@pytest.mark.once
@pytest.mark.parametrize("place", [0, 4096])
def test_a_corrupt_database_is_said(installation, place):
    with (installation.home / "andon.sqlite3").open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 30_000)
    code, found = diagnose(installation)
    assert code == 1
    assert found["database"][0]["status"] == FAIL
    assert "manage.py restore" in found["database"][0]["next_step"]


@pytest.mark.once
def test_a_database_that_is_not_migrated_is_said(installation):
    (installation.home / "andon.sqlite3").unlink()
    with contextlib.closing(sqlite3.connect(installation.home / "andon.sqlite3")) as database:
        database.execute("CREATE TABLE t (a)")
    code, found = diagnose(installation)
    assert code == 1
    assert "migrations are not applied" in found["database"][-1]["detail"]


@pytest.mark.once
def test_a_database_of_a_newer_version_is_said(installation):
    with contextlib.closing(sqlite3.connect(installation.home / "andon.sqlite3")) as database:
        database.execute("INSERT INTO django_migrations VALUES (999, 'projects', '0999_future', '2027-01-01')")
        database.commit()
    code, found = diagnose(installation)
    assert code == 1
    assert "newer Andon" in found["database"][-1]["detail"]
    assert "projects.0999_future" in found["database"][-1]["detail"]


@pytest.mark.once
def test_a_database_that_left_wal_is_said(installation):
    with contextlib.closing(sqlite3.connect(installation.home / "andon.sqlite3")) as database:
        database.execute("PRAGMA journal_mode=DELETE")
    code, found = diagnose(installation)
    assert code == 0
    assert "journal mode delete" in found["database"][1]["detail"]


@pytest.mark.once
def test_lines_survive_a_terminal_without_unicode(installation):
    done = subprocess.run(
        [sys.executable, "manage.py", "doctor"],
        env={**installation.env, "PYTHONIOENCODING": "ascii"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert " ok   database" in done.stdout


@pytest.mark.once
def test_a_postgresql_that_does_not_answer_is_said(tmp_path):
    up = Up(tmp_path, env={"DATABASE_URL": f"postgres://u:hidden-word@127.0.0.1:{free_port()}/x", "REDIS_URL": ""})
    code, found = diagnose(up)
    assert code == 1
    assert "DATABASE_URL" in found["database"][0]["next_step"]
    assert "hidden-word" not in json.dumps(found)


@pytest.mark.once
def test_postgresql_missing_empty_and_migrated(tmp_path):
    try:
        psycopg.connect(SERVER, connect_timeout=3).close()
    except psycopg.OperationalError:
        pytest.skip(
            "no PostgreSQL answers: install and start postgresql as .ci/run does, "
            "or set ANDON_TEST_DATABASE_URL to a server where databases may be made"
        )
    name = f"andon_{uuid.uuid4().hex[:12]}"
    url = urlunsplit(urlsplit(SERVER)._replace(path=f"/{name}"))
    up = Up(tmp_path, env={"DATABASE_URL": url, "REDIS_URL": ""})
    code, found = diagnose(up)
    assert (code, found["database"][0]["status"]) == (1, FAIL)
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        try:
            _, found = diagnose(up)
            assert [row["status"] for row in found["database"]] == [OK, FAIL]
            up.manage("migrate", "-v0")
            _, found = diagnose(up)
            assert [row["status"] for row in found["database"]] == [OK, OK]
            assert found["users"][0]["status"] == FAIL
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")
