"""Backup and restore as commands, on real homes and real databases.

Importing everything takes a second and a half, so one process a home does it and forks for each command.
"""

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from config.backup import archive

ROOT = Path(__file__).resolve().parents[2]
SERVER = os.environ.get("ANDON_TEST_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres")
# Each tries both databases itself, on homes of its own.
pytestmark = pytest.mark.once
DRIVER = """
import json, os, signal, sys
import django
django.setup()
import django.core.management.commands.migrate, config.backup, config.urls, config.worker
from django.core.management import execute_from_command_line

def die_at(step):
    passed = 0
    def count():
        nonlocal passed
        passed += 1
        if passed == step:
            os.kill(os.getpid(), signal.SIGKILL)
    def hook(event, arguments):
        touches = event in {"os.rename", "os.link", "os.remove", "os.mkdir", "shutil.rmtree", "sqlite3.connect"}
        if touches or event == "open" and str(arguments[0]).startswith(os.environ["ANDON_HOME"]):
            count()
    sys.addaudithook(hook)
    fsync = os.fsync
    os.fsync = lambda descriptor: (count(), fsync(descriptor), count())
    if os.environ.get("DATABASE_URL"):
        import psycopg
        from django.db.backends.postgresql.base import Cursor
        execute, copy = Cursor.execute, Cursor.copy
        Cursor.execute = lambda *a, **k: (count(), execute(*a, **k))[1]
        Cursor.copy = lambda *a, **k: (count(), copy(*a, **k))[1]

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        if job["stdin"] != "/dev/null":
            os.setsid()
        os.dup2(os.open(job["stdin"], os.O_RDONLY), 0)
        os.dup2(os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
        os.dup2(os.open(job["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
        code = 0
        try:
            if job["die_at"]:
                die_at(job["die_at"])
            if job["code"]:
                exec(job["code"], {})
            else:
                execute_from_command_line(["manage.py", *job["words"]])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if job["wait"]:
        _, status = os.waitpid(child, 0)
        print(json.dumps({"pid": child, "code": os.waitstatus_to_exitcode(status)}), flush=True)
    else:
        print(json.dumps({"pid": child, "code": None}), flush=True)
"""
# Everything that the database holds, as one digest a table.
CONTENT = """
import hashlib, json
from django.apps import apps
found = {}
for model in apps.get_models(include_auto_created=True):
    rows = sorted(repr(row) for row in model._default_manager.values_list())
    found[model._meta.db_table] = [len(rows), hashlib.sha256("\\n".join(rows).encode()).hexdigest()]
print(json.dumps(found))
"""
FURNISH = """
from django.contrib.auth.models import Group, User
from django.utils import timezone
from projects.events import SWEEP, record, writing
from projects.models import Preference, Project, Story
user = User.objects.create_user("anna")
user.groups.add(Group.objects.get(name="operator"))
Preference.objects.create(user=user)
now = timezone.now()
with writing():
    project = Project.objects.create(slug="demo", node="n", path="/w/demo", name="demo", found_at=now, error=ODD,
        description=ODD, warnings=[ODD, None, 1.5], durations=[])
    Story.objects.create(project=project, key="US-1", position=1, state="pending", title=ODD[:400], notes="")
    record("project.found", project.subject, by=SWEEP, now=now, project="demo", told=ODD)
"""
ODD = "tab\t newline\n return\r backslash \\ \\N \\. quote ' \" umlaut äöü ☂ 😀 end"


class Home:
    """One ANDON_HOME and its database; `run` runs a command, `execute` a piece of Python, in a process each."""

    def __init__(self, folder: Path, database_url: str = "") -> None:
        self.folder, self.path, self.template = folder, folder / "home", folder / "template"
        self.database_url = database_url
        (folder / "workspace").mkdir()
        self.env = {
            **{name: text for name, text in os.environ.items() if not name.startswith("ANDON_")},
            "ANDON_HOME": str(self.path),
            "ANDON_WORKSPACE": str(folder / "workspace"),
            "DATABASE_URL": database_url,
            "REDIS_URL": "",
            "DJANGO_SETTINGS_MODULE": "config.settings",
        }
        if database_url:
            self._on_server("CREATE DATABASE {}")
        self.driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.run("migrate", "-v0").code == 0
        shutil.copytree(self.path, self.template, symlinks=True)
        if database_url:
            self._on_server("CREATE DATABASE {}_t TEMPLATE {}")

    @property
    def engine(self) -> str:
        return "postgresql" if self.database_url else "sqlite"

    @property
    def database(self) -> Path:
        return self.path / "andon.sqlite3"

    def reset(self) -> None:
        shutil.rmtree(self.path)
        shutil.copytree(self.template, self.path, symlinks=True)
        if self.database_url:
            self._on_server("DROP DATABASE {} WITH (FORCE)")
            self._on_server("CREATE DATABASE {} TEMPLATE {}_t")

    def close(self) -> None:
        self.driver.stdin.close()
        self.driver.wait(10)
        self.driver.stdout.close()
        if self.database_url:
            self._on_server("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            self._on_server("DROP DATABASE IF EXISTS {}_t WITH (FORCE)")

    def _on_server(self, statement: str) -> None:
        name = urlsplit(self.database_url).path[1:]
        with psycopg.connect(SERVER, autocommit=True) as server:
            server.execute(statement.replace("{}", name))

    def run(self, *words: object, code: str = "", stdin: str = "/dev/null", die_at: int = 0, wait: bool = True):
        out, err = self.folder / f"out-{uuid.uuid4().hex}", self.folder / f"err-{uuid.uuid4().hex}"
        job = {"words": list(map(str, words)), "code": code, "stdin": stdin, "die_at": die_at, "wait": wait}
        self.driver.stdin.write(json.dumps({**job, "out": str(out), "err": str(err)}) + "\n")
        self.driver.stdin.flush()
        answer = json.loads(self.driver.stdout.readline())
        if not wait:
            return SimpleNamespace(**answer)
        return SimpleNamespace(**answer, out=out.read_text(), err=err.read_text())

    def execute(self, code: str) -> str:
        done = self.run(code=code)
        assert done.code == 0, done.err
        return done.out

    def content(self) -> dict[str, list]:
        return json.loads(self.execute(CONTENT))

    def furnish(self) -> None:
        self.execute(f"ODD = {ODD!r}\n{FURNISH}")

    def backup(self, name: str = "backup.tar.gz") -> Path:
        target = self.folder / name
        done = self.run("backup", target, "--force")
        assert done.code == 0, done.err
        return target

    def state(self) -> dict[str, str]:
        """Every file of the home that a restore could touch, and on PostgreSQL all rows."""
        files = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.path.iterdir()
            if path.is_file() and not path.name.endswith((".lock", "-shm", "-wal"))
        }
        return {**files, **(self.content() if self.database_url else {})}


@pytest.fixture(scope="module")
def sqlite_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("sqlite"))
    yield home
    home.close()


@pytest.fixture(scope="module")
def postgresql_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    try:
        psycopg.connect(SERVER, connect_timeout=3).close()
    except psycopg.OperationalError as error:
        pytest.skip(
            f"no PostgreSQL answers ({str(error).splitlines()[0]}): install and start postgresql as .ci/run does, "
            "or set ANDON_TEST_DATABASE_URL to a server where databases may be made"
        )
    url = urlunsplit(urlsplit(SERVER)._replace(path=f"/andon_{uuid.uuid4().hex[:12]}"))
    home = Home(tmp_path_factory.mktemp("postgresql"), url)
    yield home
    home.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def andon(request: pytest.FixtureRequest) -> Iterator[Home]:
    home = request.getfixturevalue(f"{request.param}_home")
    home.reset()
    return home


@pytest.fixture
def embedded(sqlite_home: Home) -> Home:
    sqlite_home.reset()
    return sqlite_home


@pytest.fixture
def server(postgresql_home: Home) -> Home:
    postgresql_home.reset()
    return postgresql_home


def test_the_archive_is_private_whole_and_says_what_it_holds(andon: Home):
    andon.furnish()
    done = andon.run("backup", andon.folder / "said.tar.gz")
    target = andon.folder / "said.tar.gz"
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"saved {target}: {target.stat().st_size:,} bytes, 1 events"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in andon.folder.iterdir() if path.name.startswith(".")] == []
    with tarfile.open(target) as tar:
        names = tar.getnames()
        meta = json.load(tar.extractfile("meta.json"))
        assert tar.extractfile("secret_key").read() == (andon.path / "secret_key").read_bytes()
    assert names[:3] == ["meta.json", "secret_key", "node"]
    assert (meta["format"], meta["engine"], meta["head"]) == (1, andon.engine, 1)
    assert meta["node"] == (andon.path / "node").read_text().strip()
    assert ["projects", "0001_initial"] in meta["migrations"]
    assert meta["counts"]["auth_user"] == 1
    assert meta["counts"]["auth_user_groups"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", meta["created_at"])
    target.unlink()


def test_a_backup_never_replaces_a_file_unless_told_to(embedded: Home):
    target = embedded.folder / "there"
    target.write_text("precious")
    refused = embedded.run("backup", target)
    assert refused.code == 1
    assert "exists already" in refused.err
    assert target.read_text() == "precious"
    assert embedded.run("backup", target, "--force").code == 0
    assert gzip.decompress(target.read_bytes())


@pytest.mark.parametrize(("name", "told"), [("-", "no file name"), (".", "no file name"), ("none/x", "no directory")])
def test_a_backup_needs_a_file_name(embedded: Home, name: str, told: str):
    done = embedded.run("backup", "-" if name == "-" else embedded.folder / name)
    assert done.code == 1
    assert told in done.err


def test_there_is_nothing_to_save_before_the_first_start(embedded: Home):
    embedded.database.unlink()
    done = embedded.run("backup", embedded.folder / "none.tar.gz")
    assert done.code == 1
    assert "manage.py up" in done.err
    assert not embedded.database.exists()
    embedded.database.touch()
    assert "not migrated" in embedded.run("backup", embedded.folder / "none.tar.gz").err
    assert not (embedded.folder / "none.tar.gz").exists()


def test_a_damaged_database_is_not_saved_as_if_it_were_sound(embedded: Home):
    damage(embedded.database)
    done = embedded.run("backup", embedded.folder / "none.tar.gz")
    assert done.code == 1
    assert "doctor" in done.err
    assert not (embedded.folder / "none.tar.gz").exists()
    assert [path.name for path in embedded.folder.iterdir() if path.name.startswith(".")] == []


WRITE = """
import itertools, os
from django.utils import timezone
from projects.events import SWEEP, record, writing
from projects.models import Project
parent = os.getppid()
for number in itertools.count(1):
    if os.getppid() != parent:
        break
    with writing():
        Project.objects.update(revision=number)
        record("project.changed", "project:demo", by=SWEEP, now=timezone.now(), project="demo", number=number)
    if number == 20:
        open(os.environ["ANDON_HOME"] + "/wrote", "w").close()
"""
BULK = """
from django.utils import timezone
from projects.models import Event
now = timezone.now()
Event.objects.bulk_create([Event(at=now, kind="b", subject="s", payload={"t": "x" * 2000}) for _ in range(12000)])
"""
AGREE = """
from projects.models import Event, Project
last = Event.objects.order_by("-id").first()
print(last.payload["number"], Project.objects.get().revision, last.id, Event.objects.count())
"""


def test_round_trip_while_a_writer_writes(andon: Home):
    andon.furnish()
    andon.execute(BULK)
    writer = andon.run(code=WRITE, wait=False)
    try:
        wait_for((andon.path / "wrote").exists)
        before = int(andon.execute(AGREE).split()[0])
        target = andon.backup()
        after = int(andon.execute(AGREE).split()[0])
    finally:
        os.kill(writer.pid, signal.SIGKILL)
    wait_gone(writer.pid)
    assert after > before + 5, "the writer was not held up"
    done = andon.run("restore", target, "--yes")
    assert done.code == 0, done.err
    number, revision, head, count = map(int, andon.execute(AGREE).split())
    assert before <= number <= after
    assert revision == number, "one moment of all tables"
    assert head == count == 12001 + number
    assert json.loads(meta_of(target))["head"] == head


def test_every_row_and_both_keys_come_back_and_what_was_there_is_kept(andon: Home):
    andon.furnish()
    saved = andon.content()
    secret, node = (andon.path / "secret_key").read_bytes(), (andon.path / "node").read_bytes()
    target = andon.backup()
    andon.execute("from projects.models import Project; Project.objects.all().delete()")
    (andon.path / "secret_key").write_text("another" * 8)
    (andon.path / "node").write_text("n-another")
    gone = andon.content()
    assert gone != saved
    done = andon.run("restore", target, "--yes")
    assert done.code == 0, done.err
    assert andon.content() == saved
    assert (andon.path / "secret_key").read_bytes() == secret
    assert (andon.path / "node").read_bytes() == node
    assert (andon.path / "secret_key").stat().st_mode & 0o777 == 0o600
    kept = [Path(path) for path in re.findall(r"kept (\S+),", done.out)]
    assert len(kept) == 3
    assert [path.read_text() for path in kept[1:]] == ["another" * 8, "n-another"]
    assert not list(andon.path.glob(".restore-*"))
    # What was there can be had again by the same way.
    if andon.engine == "postgresql":
        assert andon.run("restore", kept[0], "--yes").code == 0
    else:
        kept[0].replace(andon.database)
    assert andon.content() == gone


def test_ids_go_on_behind_the_restored_ones(andon: Home):
    andon.furnish()
    andon.execute("from projects.models import Event; Event.objects.update(id=50)")
    andon.execute("from projects.models import Project, Story; Story.objects.all().delete()")
    target = andon.backup()
    assert andon.run("restore", target, "--yes").code == 0
    andon.execute(
        "from django.contrib.auth.models import User\n"
        "from django.utils import timezone\n"
        "from projects.events import SWEEP, record, writing\n"
        "from projects.models import Event, Project, Story\n"
        "User.objects.create_user('bert')\n"
        "with writing(): record('a.b', 's', by=SWEEP, now=timezone.now())\n"
        "assert Event.objects.order_by('-id').first().id == 51\n"
        "story = Story.objects.create(project=Project.objects.get(), key='k', position=1, state='pending')\n"
        "assert story.id == 2, 'the number of a deleted row is not given again'\n"
    )


def test_a_cursor_of_the_newer_log_is_answered_by_a_reset(andon: Home):
    andon.furnish()
    target = andon.backup()
    andon.execute(BULK.replace("12000", "30"))
    ask = "from projects.relay import Filter, head, page_of\n"
    old_head = int(andon.execute(ask + "print(head())"))
    assert old_head == 31
    assert andon.run("restore", target, "--yes").code == 0
    frame = andon.execute(ask + f"frame = page_of(Filter(), since={old_head}); print(frame.reset, frame.cursor)")
    assert frame.split() == ["True", "1"]


def test_a_backup_of_an_older_version_is_migrated(andon: Home):
    assert andon.run("migrate", "projects", "0001", "-v0").code == 0
    andon.execute(
        "from django.contrib.auth.models import Group, User\n"
        "Group.objects.all().delete(); Group.objects.create(name='mine'); User.objects.create_user('old')"
    )
    target = andon.backup()
    andon.reset()
    andon.furnish()
    done = andon.run("restore", target, "--yes")
    assert done.code == 0, done.err
    names = andon.execute(
        "from django.contrib.auth.models import Group, User\n"
        "print(*User.objects.values_list('username', flat=True), *sorted(g.name for g in Group.objects.all()))"
    )
    assert names.split() == ["old", "admin", "mine", "operator", "viewer"]
    assert andon.run("migrate", "--check", "-v0").code == 0


def test_restoring_into_an_empty_home_asks_nothing(andon: Home):
    andon.furnish()
    saved, target = andon.content(), andon.backup()
    andon.reset()
    if andon.engine == "postgresql":
        andon.run("migrate", "projects", "zero", "-v0")
    else:
        andon.database.unlink()
    done = andon.run("restore", target)
    assert done.code == 0, done.err
    assert "kept" not in done.out
    assert andon.content() == saved


def test_twice_in_a_row_keeps_both(andon: Home):
    andon.furnish()
    saved, target = andon.content(), andon.backup()
    for _ in range(2):
        assert andon.run("restore", target, "--yes").code == 0
        assert andon.content() == saved
    assert len([path for path in andon.path.iterdir() if ".before-restore-" in path.name]) == 2


def test_kill_9_at_any_point_leaves_the_old_or_the_new(andon: Home):
    andon.furnish()
    secret = (andon.path / "secret_key").read_text()
    new, target = andon.content(), andon.backup()
    (andon.path / "secret_key").write_text("b" * 40)
    andon.execute("from django.contrib.auth.models import User; User.objects.create_user('carla')")
    old = andon.content()
    # Each file step of SQLite; on PostgreSQL there are hundreds of statements.
    stride = 1 if andon.engine == "sqlite" else 17
    seen = []
    for step in range(1, 2000, stride):
        done = andon.run("restore", target, "--yes", die_at=step)
        found = andon.content()
        assert found in (old, new), f"step {step}"
        assert (andon.path / "secret_key").read_text() in (secret, "b" * 40)
        seen.append(found == new)
        if done.code != -signal.SIGKILL:
            break
        assert not (found == old and True in seen[:-1]), "never back"
    assert done.code == 0, done.err
    assert len(seen) > 10
    assert {True, False} == set(seen)
    assert andon.content() == new
    assert (andon.path / "secret_key").read_text() == secret
    assert not list(andon.path.glob(".restore-*"))
    assert andon.run("restore", target, "--yes").code == 0
    assert andon.content() == new


def refused(andon: Home, target: Path, told: str, *words: str) -> None:
    before = andon.state()
    done = andon.run("restore", target, *(words or ("--yes",)))
    assert done.code == 1, done.out
    assert told in done.err
    assert "Traceback" not in done.err
    assert andon.state() == before
    assert not list(andon.path.glob(".restore-*"))


@pytest.mark.parametrize(("lock", "told"), [("up.lock", "is up already"), ("worker.lock", "A worker runs")])
def test_refuses_while_andon_is_up(andon: Home, lock: str, told: str):
    andon.furnish()
    target = andon.backup()
    with (andon.path / lock).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(andon, target, told)
    assert andon.run("restore", target, "--yes").code == 0


def test_refuses_while_another_process_has_the_database_open(embedded: Home):
    embedded.furnish()
    target = embedded.backup()
    reader = embedded.run(
        code="import os, time\n"
        "from projects.models import Event\n"
        "assert Event.objects.count()\n"
        "open(os.environ['ANDON_HOME'] + '/read', 'w').close()\n"
        "time.sleep(60)",
        wait=False,
    )
    wait_for((embedded.path / "read").exists)
    refused(embedded, target, "fuser -v")
    os.kill(reader.pid, signal.SIGKILL)
    wait_gone(reader.pid)
    assert embedded.run("restore", target, "--yes").code == 0


def test_refuses_while_another_machine_uses_the_database(server: Home):
    server.furnish()
    target = server.backup()
    server.execute(
        "from django.utils import timezone\n"
        "from services.models import WorkerHost\n"
        "now = timezone.now()\n"
        "WorkerHost.objects.create(node='other', host_name='shed', status='ticking', pid=1, start_ticks=1,\n"
        "    boot_id='b', version='1', started_at=now, tick_at=now, told_at=now)"
    )
    refused(server, target, "runs on this database on shed")


def test_asks_before_it_replaces_something(andon: Home):
    andon.furnish()
    target = andon.backup()
    andon.execute("from django.contrib.auth.models import User; User.objects.create_user('carla')")
    before = andon.state()
    done = andon.run("restore", target)
    assert done.code == 1
    assert "--yes" in done.err
    assert "users (2)" in done.err
    assert andon.state() == before
    for word, code in (("yes", 1), ("restore", 0)):
        master, slave = pty.openpty()
        os.write(master, f"{word}\n".encode())
        done = andon.run("restore", target, stdin=os.ttyname(slave))
        os.close(master)
        os.close(slave)
        assert done.code == code, done.err
        assert "Type restore" in done.out
        assert (andon.state() == before) is bool(code)


def test_refuses_a_backup_of_the_other_engine(sqlite_home: Home, postgresql_home: Home):
    for home in (sqlite_home, postgresql_home):
        home.reset()
        home.furnish()
    of_sqlite, of_postgresql = sqlite_home.backup(), postgresql_home.backup()
    refused(sqlite_home, of_postgresql, "Set DATABASE_URL to a PostgreSQL database")
    refused(postgresql_home, of_sqlite, "Unset DATABASE_URL")


def test_refuses_a_backup_of_a_newer_version(andon: Home):
    andon.furnish()

    def later(meta: dict) -> None:
        meta["migrations"].append(["projects", "0999_future"])

    refused(andon, forge(andon.backup(), later), "does not know projects.0999_future. Update Andon")
    refused(andon, forge(andon.backup(), lambda meta: meta.update(format=2)), "newer Andon (format 2)")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_refuses_a_truncated_file(embedded: Home, share: float):
    embedded.furnish()
    target = embedded.backup()
    whole = target.read_bytes()
    target.write_bytes(whole[: int(len(whole) * share)])
    refused(embedded, target, "truncated")


def is_the_same(turned: bytes, whole: bytes) -> bool:
    """Say whether a turned bit changed nothing: inside a run of zeros another distance copies the same zeros."""
    try:
        return gzip.decompress(turned) == gzip.decompress(whole)
    except (OSError, EOFError, zlib.error):
        return False


def test_refuses_a_file_that_a_bit_was_turned_in(andon: Home):
    andon.furnish()
    target = andon.backup()
    whole = bytearray(target.read_bytes())
    for place in range(20, len(whole), len(whole) // 12):
        turned = whole.copy()
        turned[place] ^= 1
        if is_the_same(turned, whole):
            continue
        target.write_bytes(turned)
        before = andon.state()
        assert andon.run("restore", target, "--yes").code == 1
        assert andon.state() == before


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"no tar" * 500), gzip.compress(bytes(20480))],
    ids=["no gzip", "no tar", "zeros"],
)
def test_refuses_what_is_no_backup(embedded: Home, content: bytes):
    target = embedded.folder / "strange"
    target.write_bytes(content)
    refused(embedded, target, "no backup of Andon")


def test_refuses_what_is_no_file(embedded: Home):
    refused(embedded, embedded.folder / "absent", "cannot be read")
    refused(embedded, embedded.folder, "is not a file")
    pipe = embedded.folder / "pipe"
    os.mkfifo(pipe)
    refused(embedded, pipe, "is not a file")
    pipe.unlink()


def renamed(name: str) -> Callable:
    def change(members: list) -> None:
        members[1][0].name = name

    return change


def typed(kind: bytes) -> Callable:
    def change(members: list) -> None:
        members[1][0].type, members[1][0].linkname, members[1][0].size = kind, "/etc/passwd", 0

    return change


def added(members: list) -> None:
    members.append((tarfile.TarInfo("more"), b""))


def extended(members: list) -> None:
    members[1][0].pax_headers = {"comment": "x" * 2_000_000}


def swapped(members: list) -> None:
    members[1], members[2] = members[2], members[1]


@pytest.mark.parametrize(
    "change",
    [
        *map(renamed, ("../secret_key", "/etc/secret_key", "./secret_key", "secret_key/../../x", "", "a" * 300)),
        *map(typed, (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)),
        *map(typed, (tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)),
        added,
        extended,
        swapped,
    ],
)
def test_refuses_hostile_members(embedded: Home, change: Callable):
    embedded.furnish()
    target = forge(embedded.backup(), members=change)
    before = set(embedded.folder.iterdir())
    refused(embedded, target, "no backup of Andon, or was tampered with")
    assert {
        path for path in set(embedded.folder.iterdir()) - before if not path.name.startswith(("out", "err"))
    } == set()


def part(number: int, **values: object) -> Callable:
    return lambda meta: meta["parts"][number].update(values)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (part(0, name="../secret_key"), "meta.json makes no sense"),
        (part(2, name="/etc/passwd"), "meta.json makes no sense"),
        (part(2, name="tables/x.copy"), "names the wrong members"),
        (part(0, size=5000), "keys are oversized"),
        (part(0, size=-1), "meta.json makes no sense"),
        (part(0, size=3), "secret_key is oversized"),
        (part(2, size=10**15), "Make room first"),
        (part(2, sha256="0"), "andon.sqlite3 is not what was saved"),
        (lambda meta: meta["parts"].pop(), "names the wrong members"),
        (lambda meta: meta.update(counts={"auth_user; DROP": 1}), "meta.json makes no sense"),
        (lambda meta: meta.update(counts={**meta["counts"], "auth_user": 7}), "not the one that its meta.json"),
        (lambda meta: meta["migrations"].pop(), "not the one that its meta.json"),
        (lambda meta: meta.update(engine="oracle"), "meta.json makes no sense"),
        (lambda meta: meta.update(node=[[]] * 100_000), "meta.json makes no sense"),
        (lambda meta: meta.update(padding=" " * 5_000_000), "meta.json is oversized"),
        (lambda meta: meta.clear(), "meta.json makes no sense"),
    ],
)
def test_refuses_a_meta_that_lies(embedded: Home, change: Callable, told: str):
    embedded.furnish()
    refused(embedded, forge(embedded.backup(), change), told)


def test_a_bomb_is_refused_before_it_is_blown_up(tmp_path: Path):
    bomb = tmp_path / "bomb"
    member = tarfile.TarInfo("meta.json")
    member.size = 10**12
    with gzip.open(bomb, "wb") as out:
        out.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(200):
            out.write(bytes(1_000_000))
    with pytest.raises(archive.Refused, match="oversized"):
        archive.unpack(bomb, tmp_path, lambda meta: None)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("CREATE TRIGGER t AFTER INSERT ON auth_user BEGIN DELETE FROM auth_user; END", "triggers"),
        ("CREATE VIEW v AS SELECT * FROM auth_user", "views"),
        ('CREATE TABLE "x\'y" (a)', "cannot be used"),
        ("DROP TABLE projects_event", "not migrated"),
    ],
)
def test_refuses_a_database_that_is_none_of_ours(embedded: Home, statement: str, told: str):
    embedded.furnish()
    target = forge(embedded.backup(), database=statement)
    refused(embedded, target, told)


def test_refuses_a_damaged_database(embedded: Home):
    embedded.furnish()
    refused(embedded, forge(embedded.backup(), database=damage), "cannot be used")


@pytest.mark.parametrize("name", ["secret_key", "node"])
def test_refuses_keys_that_andon_would_not_start_with(embedded: Home, name: str):
    def spoil(members: list) -> None:
        for number, (member, _) in enumerate(members):
            if member.name == name:
                member.size = 4
                members[number] = (member, b"\xff\xfe!!")

    refused(embedded, forge(embedded.backup(), members=spoil, describe=True), "refuse to start with")


def test_refuses_rows_that_do_not_fit_the_tables(server: Home):
    server.furnish()

    def spoil(members: list) -> None:
        for number, (member, _) in enumerate(members):
            if member.name == "tables/auth_user_groups.copy":
                member.size = 8
                members[number] = (member, b"9\t77\t77\n")

    before = server.content()
    done = server.run("restore", forge(server.backup(), members=spoil, describe=True), "--yes")
    assert done.code == 1
    assert "PostgreSQL refused" in done.err
    assert "foreign key" in done.err
    assert server.content() == before


def test_a_damaged_database_is_replaced_and_kept_with_its_log(embedded: Home):
    embedded.furnish()
    saved, target = embedded.content(), embedded.backup()
    embedded.database.write_bytes(b"no database at all" * 100)
    Path(f"{embedded.database}-wal").write_bytes(b"its log")
    damaged = embedded.database.read_bytes()
    assert "--yes" in embedded.run("restore", target).err
    done = embedded.run("restore", target, "--yes")
    assert done.code == 0, done.err
    assert embedded.content() == saved
    [kept] = list(embedded.path.glob("*.before-restore-*Z"))
    assert kept.read_bytes() == damaged
    assert Path(f"{kept}-wal").read_bytes() == b"its log"


def test_what_only_the_write_ahead_log_holds_is_kept(embedded: Home):
    embedded.furnish()
    target = embedded.backup()
    writer = embedded.run(
        code="import os, signal\n"
        "from django.contrib.auth.models import User\n"
        "User.objects.create_user('dora')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert writer.code == -signal.SIGKILL
    assert Path(f"{embedded.database}-wal").stat().st_size
    assert embedded.run("restore", target, "--yes").code == 0
    [kept] = list(embedded.path.glob("*.before-restore-*Z"))
    with contextlib.closing(sqlite3.connect(kept)) as database:
        assert database.execute("SELECT count(*) FROM auth_user WHERE username = 'dora'").fetchone() == (1,)


def meta_of(target: Path) -> str:
    with tarfile.open(target) as tar:
        return tar.extractfile("meta.json").read().decode()


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(60_000))


def forge(
    target: Path,
    meta: Callable[[dict], object] | None = None,
    *,
    members: Callable[[list], object] | None = None,
    database: Callable[[Path], object] | str | None = None,
    describe: bool = False,
) -> Path:
    """Change an archive: its meta.json, its members, or (told truly in meta.json) its database."""
    with tarfile.open(target) as tar:
        found = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    if database is not None:
        spoilt = target.with_name("spoilt.sqlite3")
        spoilt.write_bytes(found[-1][1])
        if callable(database):
            database(spoilt)
        else:
            with contextlib.closing(sqlite3.connect(spoilt)) as link:
                link.execute(database)
                link.commit()
        found[-1] = (found[-1][0], spoilt.read_bytes())
        describe = True
    document = json.loads(found[0][1])
    if members is not None:
        members(found)
    if describe:
        document["parts"] = [
            {"name": member.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for member, data in found[1:]
        ]
    if meta is not None:
        meta(document)
    found[0] = (found[0][0], json.dumps(document).encode())
    forged = target.with_name("forged.tar.gz")
    with tarfile.open(forged, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for member, data in found:
            if member.type in {tarfile.REGTYPE, tarfile.AREGTYPE}:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return forged


def wait_for(condition: Callable[[], object], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_gone(pid: int) -> None:
    """Wait until a killed child of the driver, which reaps it at the next fork or never, is a zombie."""
    wait_for(lambda: "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text())
