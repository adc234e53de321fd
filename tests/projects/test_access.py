"""Users, groups, tokens, links: who is let in, and who is not."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser

from projects import access
from projects.access import Identity
from projects.errors import Conflict, Forbidden, Missing, Rejected, TooMany, Unauthenticated
from projects.events import By
from projects.models import ApiToken, Event, SignInLink
from projects.states import Role

BY = By("user:anna", "page", "10.0.0.1")
pytestmark = pytest.mark.django_db


def kinds() -> list[str]:
    return list(Event.objects.order_by("id").values_list("kind", flat=True))


def test_each_role_includes_the_ones_before():
    assert [[a.includes(b) for b in Role] for a in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_a_token_is_kept_as_a_digest_and_shown_once(now):
    token, raw = access.issue("ci", role=Role.OPERATOR, by=BY, now=now)
    assert raw.startswith("andon_")
    assert raw not in str(ApiToken.objects.filter(pk=token.pk).values().get())
    found = access.identify_token(raw, now=now, address="10.0.0.2")
    assert found == Identity("token:ci", Role.OPERATOR, token_id=token.pk)
    token.refresh_from_db()
    assert (token.last_used_at, token.last_used_from) == (now, "10.0.0.2")
    event = Event.objects.get(kind="token.issued")
    assert raw not in str(event.payload)
    assert event.payload == {"name": "ci", "role": "operator", "via": "page", "address": "10.0.0.1"}


def test_use_is_written_at_most_once_a_minute(now, django_assert_num_queries):
    _, raw = access.issue("ci", role=Role.VIEWER, by=BY, now=now)
    access.identify_token(raw, now=now, address="")
    with django_assert_num_queries(1):
        access.identify_token(raw, now=now + timedelta(seconds=59), address="")
    with django_assert_num_queries(2):
        access.identify_token(raw, now=now + timedelta(seconds=61), address="")


@pytest.mark.parametrize("raw", ["", "andon_", "andon_" + "x" * 43, "\x00", "é" * 100, "\ud800"])
def test_an_unknown_token_is_refused(raw, now):
    with pytest.raises(Unauthenticated):
        access.identify_token(raw, now=now, address="")


def test_an_expired_token_is_refused(now):
    _, raw = access.issue("ci", role=Role.VIEWER, by=BY, now=now, life=timedelta(days=1))
    access.identify_token(raw, now=now + timedelta(hours=23), address="")
    with pytest.raises(Unauthenticated):
        access.identify_token(raw, now=now + timedelta(hours=24), address="")


def test_a_revoked_token_is_refused_and_revoked_once(now):
    token, raw = access.issue("ci", role=Role.VIEWER, by=BY, now=now)
    access.revoke(token, by=BY, now=now)
    with pytest.raises(Unauthenticated):
        access.identify_token(raw, now=now, address="")
    with pytest.raises(Conflict):
        access.revoke(token, by=BY, now=now)
    assert kinds() == ["token.issued", "token.revoked"]


def test_names_of_live_tokens_are_unique(now):
    token, _ = access.issue("ci", role=Role.VIEWER, by=BY, now=now)
    with pytest.raises(Conflict):
        access.issue(" ci ", role=Role.VIEWER, by=BY, now=now)
    access.revoke(token, by=BY, now=now)
    access.issue("ci", role=Role.VIEWER, by=BY, now=now)


@pytest.mark.parametrize("name", ["", "   ", "x" * 81])
def test_a_token_needs_a_name(name, now):
    with pytest.raises(Rejected):
        access.issue(name, role=Role.VIEWER, by=BY, now=now)


def test_a_link_works_once(make_user, now):
    user = make_user("bo")
    raw = access.invite(user, by=BY, now=now).split("/")[-2]
    assert raw not in str(SignInLink.objects.values().get())
    assert access.find_link(raw, now=now).user == user
    assert access.consume(raw, address="10.0.0.9", now=now) == user
    for attempt in (access.find_link, lambda raw, now: access.consume(raw, address="", now=now)):
        with pytest.raises(Missing):
            attempt(raw, now=now)
    assert kinds() == ["user.invited", "user.signed_in"]


def test_a_link_ends_after_a_day_and_with_its_user(make_user, now):
    user = make_user("bo")
    raw = access.invite(user, by=BY, now=now).split("/")[-2]
    with pytest.raises(Missing):
        access.consume(raw, address="", now=now + timedelta(hours=24))
    user.is_active = False
    user.save()
    with pytest.raises(Missing):
        access.consume(raw, address="", now=now)


def test_eight_failures_of_a_name_close_it_for_ten_minutes(now):
    for _ in range(8):
        access.check_attempts("anna", "10.0.0.1", now=now)
        access.note_sign_in("anna", "10.0.0.1", ok=False, now=now)
    with pytest.raises(TooMany):
        access.check_attempts("anna", "10.0.0.2", now=now)
    access.check_attempts("bo", "10.0.0.1", now=now)
    access.check_attempts("anna", "10.0.0.2", now=now + timedelta(minutes=10, seconds=1))


def test_thirty_failures_of_an_address_close_it(now):
    for number in range(30):
        access.note_sign_in(f"u{number}", "10.0.0.1", ok=False, now=now)
    with pytest.raises(TooMany):
        access.check_attempts("somebody", "10.0.0.1", now=now)
    access.check_attempts("somebody", "10.0.0.2", now=now)


def test_nobody_without_a_role_is_let_in(make_user):
    with pytest.raises(Unauthenticated):
        access.identify_user(AnonymousUser(), "")
    with pytest.raises(Forbidden):
        access.identify_user(make_user("bo", role=""), "s")


def test_the_greatest_group_counts_and_superusers_are_admins(make_user, django_user_model):
    from django.contrib.auth.models import Group

    user = make_user("bo", "viewer")
    user.groups.add(Group.objects.get_or_create(name="operator")[0])
    assert access.identify_user(user, "s").role == Role.OPERATOR
    assert access.role_of(django_user_model.objects.create_superuser("root")) == Role.ADMIN


def test_need_says_what_is_missing():
    with pytest.raises(Forbidden, match="needs the role admin"):
        access.need(Identity("user:bo", Role.OPERATOR), Role.ADMIN)


def test_expelled_takes_three_queries_for_any_number(make_user, now, django_assert_num_queries, client):
    users = [make_user(f"u{number}") for number in range(20)]
    client.force_login(users[0])
    session = client.session.session_key
    staying = Identity("user:u0", Role.VIEWER, user_id=users[0].pk, session=session)
    others = {Identity(f"user:{u}", Role.VIEWER, user_id=u.pk, session="gone") for u in users[1:]}
    token, _ = access.issue("ci", role=Role.VIEWER, by=BY, now=now)
    by_token = Identity("token:ci", Role.VIEWER, token_id=token.pk)
    with django_assert_num_queries(4):  # users, their groups, sessions, tokens
        assert access.expelled({staying, by_token, *others}, now=now) == others
