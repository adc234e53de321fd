"""What the environment may say, and what is refused."""

import contextlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import environment, up
from config.environment import Nonsense, read

pytestmark = pytest.mark.pure


@pytest.fixture
def base(tmp_path: Path) -> dict[str, str]:
    return {"ANDON_HOME": str(tmp_path / "home"), "ANDON_WORKSPACE": str(tmp_path)}


def test_defaults_are_loopback_and_embedded(base):
    found = read(base)
    assert (found.bind, found.port, found.database_url, found.redis_url) == ("127.0.0.1", 8321, "", "")
    assert found.allowed_hosts == ("localhost", "127.0.0.1", "[::1]")
    assert found.is_loopback


def test_home_key_and_node_are_made_once_and_private(base):
    first, second = read(base), read(base)
    assert (first.secret_key, first.node) == (second.secret_key, second.node)
    assert len(first.secret_key) >= 50
    assert stat.S_IMODE(first.home.stat().st_mode) == 0o700
    for name in ("secret_key", "node"):
        assert stat.S_IMODE((first.home / name).stat().st_mode) == 0o600
    assert sorted(path.name for path in first.home.iterdir()) == ["node", "run", "secret_key"]


def test_a_home_that_others_could_read_is_closed(base, tmp_path):
    (tmp_path / "home").mkdir(mode=0o755)
    assert stat.S_IMODE(read(base).home.stat().st_mode) == 0o700


def test_of_many_first_starts_at_once_all_have_the_same_key(base):
    keys: list[str] = []
    threads = [threading.Thread(target=lambda: keys.append(read(base).secret_key)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 16
    assert len(set(keys)) == 1


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ANDON_PORT", "0", "Give a number from 1 to 65535"),
        ("ANDON_PORT", "70000", "Give a number from 1 to 65535"),
        ("ANDON_PORT", "٣", "Give a number from 1 to 65535"),
        ("ANDON_BIND", "example.org", "Give an IP address"),
        ("ANDON_BIND", "0.0.0.0", "Set ANDON_ALLOWED_HOSTS"),
        ("ANDON_ALLOWED_HOSTS", "*", "List plain host names"),
        ("ANDON_ALLOWED_HOSTS", "https://a.org", "List plain host names"),
        ("ANDON_NODE", "../x", "Use 1 to 64"),
        ("ANDON_NODE", "a\n", "Use 1 to 64"),
        ("ANDON_HOME", "relative", "Give an absolute path"),
        ("ANDON_HOME", "/dev/null/x", "Give a directory"),
        ("ANDON_WORKSPACE", "relative", "Give absolute paths"),
        ("ANDON_WORKSPACE", "/", "whole file system"),
        ("ANDON_JOURNAL_ROOTS", "relative", "ANDON_JOURNAL_ROOTS holds 'relative'"),
        ("ANDON_JOURNAL_ROOTS", "/", "whole file system"),
        ("ANDON_RECOVER", "maybe", "on or off"),
        ("ANDON_SECRET_KEY", "short", "shorter than 32"),
        ("DATABASE_URL", "mysql://x", "not a postgres:// address"),
        ("REDIS_URL", "http://x", "not a redis:// address"),
        ("REDIS_URL", "redis://x", "DATABASE_URL is not"),
    ],
)
def test_nonsense_is_refused_with_what_to_do(base, name, value, sentence):
    if name == "ANDON_NODE" and value.endswith("\n"):
        # Surrounding white space is no nonsense.
        assert read({**base, name: value}).node == "a"
        return
    with pytest.raises(Nonsense, match=sentence):
        read({**base, name: value})


def test_beyond_loopback_with_hosts_named(base):
    found = read({**base, "ANDON_BIND": "0.0.0.0", "ANDON_ALLOWED_HOSTS": "andon.example.org, b.example.org"})
    assert not found.is_loopback
    assert found.allowed_hosts[-2:] == ("andon.example.org", "b.example.org")


def test_journals_lie_in_the_home_unless_told_otherwise(base, tmp_path):
    found = read(base)
    assert (found.journal_roots, found.recover) == ((found.home / "journals",), True)
    found = read({**base, "ANDON_JOURNAL_ROOTS": f"{tmp_path}/a:{tmp_path}/b", "ANDON_RECOVER": "OFF"})
    assert (found.journal_roots, found.recover) == ((tmp_path / "a", tmp_path / "b"), False)


def test_several_roots_each_once(base, tmp_path):
    (tmp_path / "a").mkdir()
    found = read({**base, "ANDON_WORKSPACE": f"{tmp_path}/a:{tmp_path}/b:{tmp_path}/a:"})
    assert found.workspace == (tmp_path / "a", tmp_path / "b")


@given(st.text(max_size=40))
def test_any_port_is_a_number_or_refused(text):
    with contextlib.suppress(Nonsense):
        assert 1 <= environment._port(text) <= 65535


@pytest.mark.parametrize(
    ("bind", "hosts", "url"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:8321"),
        ("::1", "", "http://[::1]:8321"),
        ("0.0.0.0", "andon.example.org,b.example.org", "https://andon.example.org"),
        ("10.0.0.5", "andon.example.org", "https://andon.example.org"),
    ],
)
def test_people_are_sent_where_they_can_go(base, bind, hosts, url):
    assert up.public_url(read({**base, "ANDON_BIND": bind, "ANDON_ALLOWED_HOSTS": hosts})) == url


def test_options_of_a_database_url_are_kept():
    code = "from config.settings import DATABASES; print(DATABASES['default']['OPTIONS'])"
    env = {**os.environ, "DATABASE_URL": "postgres://u:p@h/n?sslmode=verify-full"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "'sslmode': 'verify-full'" in done.stdout
    assert "'pool'" in done.stdout


def test_where_notices_may_go(base):
    found = read(base)
    assert (found.webhook_hosts, found.email_url, found.email_from) == (frozenset(), "", "")
    base |= {"ANDON_WEBHOOK_HOSTS": "Hook.lan, ::1", "EMAIL_URL": "smtp+tls://u%40x:pw@mail.example.org:587"}
    found = read(base | {"ANDON_EMAIL_FROM": "andon@example.org"})
    assert found.webhook_hosts == {"hook.lan", "::1"}
    assert (found.email_url, found.email_from) == (base["EMAIL_URL"], "andon@example.org")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EMAIL_URL", "mail.example.org"),
        ("EMAIL_URL", "http://user:sesame@mail.example.org/"),
        ("EMAIL_URL", "smtp://user:sesame@two@hosts/x"),
        ("ANDON_EMAIL_FROM", "Andon <andon@example.org>"),
        ("ANDON_WEBHOOK_HOSTS", "http://hook.lan/"),
    ],
)
def test_nonsense_about_notices_is_refused_without_its_password(base, name, text):
    with pytest.raises(Nonsense) as caught:
        read(base | {name: text})
    assert name in str(caught.value)
    assert "sesame" not in str(caught.value)
