"""Signing in, by password and by link, and out."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.test import Client

from projects import access
from projects.events import By
from projects.models import Event

pytestmark = pytest.mark.django_db
BY = By("command", "admin")
PASSWORD = "correct-horse-7"


def attempt(client: Client, password: str = PASSWORD, **data):
    return client.post("/login/", {"username": "bo", "password": password, **data})


def test_a_password_lets_in_and_is_told(client, make_user):
    make_user("bo")
    assert client.get("/projects/").headers["Location"] == "/login/?next=%2Fprojects%2F"
    answer = attempt(client, next="/projects/")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/projects/")
    assert client.get("/projects/").status_code == 200
    event = Event.objects.get(kind="user.signed_in")
    assert (event.actor, event.payload["means"], event.payload["address"]) == ("user:bo", "password", "127.0.0.1")


@pytest.mark.parametrize(
    "target",
    ["https://evil.example/", "//evil.example/", "javascript:alert(1)", "/login/", "\\\\evil.example", "/\t/evil"],
)
def test_it_never_leads_elsewhere(client, make_user, target):
    make_user("bo")
    location = attempt(client, next=target).headers["Location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\t/", "/login/"))


def test_a_wrong_password_is_401_and_the_ninth_attempt_429(client, make_user):
    make_user("bo")
    for _ in range(8):
        answer = attempt(client, "wrong")
        assert (answer.status_code, "do not match" in answer.content.decode()) == (401, True)
    answer = attempt(client)
    assert (answer.status_code, "ten minutes" in answer.content.decode()) == (429, True)
    assert Event.objects.filter(kind="user.sign_in_failed").count() == 8
    assert PASSWORD not in str(list(Event.objects.values()))


def test_names_are_escaped_and_odd_ones_do_no_harm(client):
    for name in ["<script>alert(1)</script>", "\x00", "x" * 5000, "é\ud7ff"]:
        answer = client.post("/login/", {"username": name, "password": "x"})
        assert answer.status_code in (401, 429)
        assert b"<script>alert" not in answer.content


def test_opening_a_link_does_not_use_it_up_its_button_does(client, make_user):
    path = access.invite(make_user("bo"), by=BY, now=_now())
    assert client.get(path).status_code == client.get(path).status_code == 200
    answer = client.post(path)
    # Whoever has a password goes home, whoever has none chooses one.
    assert answer.headers["Location"] == "/"
    assert client.get("/").status_code == 200
    other = Client()
    assert other.get(path).status_code == other.post(path).status_code == 404


def test_without_a_password_the_link_leads_to_choosing_one(client, django_user_model):
    user = django_user_model.objects.create_superuser("root", password=None)
    answer = client.post(access.invite(user, by=BY, now=_now()))
    assert answer.headers["Location"] == "/settings/password/"
    weak = client.post("/settings/password/", {"new_password1": "short", "new_password2": "short"})
    assert (weak.status_code, "too short" in weak.content.decode()) == (400, True)
    good = {"new_password1": "garden-gate-41", "new_password2": "garden-gate-41"}
    assert client.post("/settings/password/", good).headers["Location"] == "/"
    assert client.get("/").status_code == 200


def test_links_need_csrf_like_every_form(make_user):
    strict = Client(enforce_csrf_checks=True)
    path = access.invite(make_user("bo"), by=BY, now=_now())
    answer = strict.post(path)
    assert (answer.status_code, b"reload" in answer.content) == (403, True)
    assert strict.get(path).status_code == 200


def test_signing_out_is_a_post_and_ends_the_session(sign_in):
    client = sign_in("viewer")
    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/").headers["Location"] == "/login/"
    assert client.get("/").status_code == 302


def test_somebody_without_a_group_gets_a_reason(make_user):
    client = Client()
    client.force_login(make_user("lone", role=""))
    answer = client.get("/")
    assert answer.status_code == 403
    assert "no role yet" in answer.content.decode()
    assert client.get("/api/me").json()["error"] == "forbidden"


def test_a_fragment_of_somebody_signed_out_is_401_not_a_sign_in_page(client):
    answer = client.get("/projects/", headers={"HX-Request": "true", "HX-Target": "projects"})
    assert answer.status_code == 401


def _now():
    from django.utils import timezone

    return timezone.now()


def test_many_attempts_at_once_are_limited_like_few(transactional_db, make_user):
    make_user("bo")
    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(lambda _: attempt(Client(), "wrong").status_code, range(24)))
        list(pool.map(lambda _: connection.close(), range(12)))
    assert sorted(codes) == [401] * 8 + [429] * 16


def test_a_new_password_ends_other_sessions_and_their_sockets(make_user):
    user = make_user("bo")
    one, other = Client(), Client()
    one.force_login(user)
    other.force_login(user)
    listening = access.identify_user(user, other.session.session_key)
    assert access.expelled({listening}, now=_now()) == set()
    secret = {"new_password1": "garden-gate-41", "new_password2": "garden-gate-41"}
    assert one.post("/settings/password/", secret).status_code == 302
    assert access.expelled({listening}, now=_now()) == {listening}
    assert one.get("/").status_code == 200
    assert other.get("/").status_code == 302
    assert Event.objects.filter(kind="user.password_set", actor="user:bo").count() == 1


def test_behind_a_proxy_of_this_machine_the_address_is_the_clients(client, make_user):
    make_user("bo")
    client.post("/login/", {"username": "bo", "password": PASSWORD}, headers={"X-Forwarded-For": "6.6.6.6, 10.1.2.3"})
    assert Event.objects.get(kind="user.signed_in").payload["address"] == "10.1.2.3"
    other = Client(REMOTE_ADDR="192.0.2.7")
    other.post("/login/", {"username": "bo", "password": PASSWORD}, headers={"X-Forwarded-For": "10.1.2.3"})
    assert Event.objects.filter(kind="user.signed_in").last().payload["address"] == "192.0.2.7"
