"""Who is asking and what may they do: users, groups, tokens, sign-in links. Nobody is let in by default."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.db.models import Exists, OuterRef
from django.http import HttpRequest
from django.utils import timezone

from projects.errors import Conflict, Forbidden, Missing, Rejected, TooMany, Unauthenticated
from projects.events import By, record, writing
from projects.models import ApiToken, Event, SignInLink
from projects.states import Role, Via

TOKEN_PREFIX = "andon_"  # noqa: S105 (a recognisable beginning, not a secret)
LINK_LIFE = timedelta(hours=24)
FAILURES_WINDOW = timedelta(minutes=10)
FAILURES_PER_NAME = 8
FAILURES_PER_ADDRESS = 30
LOOPBACK = frozenset({"127.0.0.1", "::1"})
USE_RECORDED_EVERY = timedelta(minutes=1)

BEARER_PREFIXES = ("/api/", "/metrics")


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who was let in: a user with a session, or a token. `project` "" = all projects."""

    name: str
    role: Role
    user_id: int | None = None
    session: str = ""
    token_id: int | None = None
    project: str = ""
    run: str = ""
    # Changes with the password, which ends a user's other sessions.
    auth_hash: str = ""

    def may(self, role: Role) -> bool:
        return self.role.includes(role)

    def may_see(self, project: str) -> bool:
        return not self.project or self.project == project


def role_of(user: Any) -> Role | None:
    """Return a user's greatest role by group; superusers are admins, others without a group have none."""
    if not user.is_authenticated or not user.is_active:
        return None
    held: Iterable[str] | None = getattr(user, "held", None)
    return _greatest(user.is_superuser, user.groups.values_list("name", flat=True) if held is None else held)


class WithRoles(ModelBackend):
    """Django's own way to find a session's user; the groups that matter (`held`) and preferences in the same query."""

    def get_user(self, user_id: Any) -> Any:
        groups = Group.objects.filter(user=OuterRef("pk"))
        is_in = {f"is_{role}": Exists(groups.filter(name=role)) for role in Role}
        users = get_user_model()._default_manager.select_related("preference")  # noqa: SLF001
        user = users.filter(pk=user_id).annotate(**is_in).first()
        if user is None or not self.user_can_authenticate(user):
            return None
        user.held = [role for role in Role if getattr(user, f"is_{role}")]  # type: ignore[attr-defined]
        return user


def _greatest(is_superuser: bool, groups: Iterable[str]) -> Role | None:
    if is_superuser:
        return Role.ADMIN
    held = set(groups)
    return next((role for role in reversed(Role) if role.value in held), None)


def identify_user(user: Any, session: str) -> Identity:
    """Return who a signed-in user is; Unauthenticated without one, Forbidden without a role."""
    if not user.is_authenticated or not user.is_active:
        raise Unauthenticated("unauthenticated", "Sign in, or send a token as Authorization: Bearer …")
    role = role_of(user)
    if role is None:
        raise Forbidden("forbidden", "Your account has no role yet. Ask an administrator to add it to a group.")
    return Identity(
        name=f"user:{user.get_username()}",
        role=role,
        user_id=user.pk,
        session=session,
        auth_hash=user.get_session_auth_hash(),
    )


def identify_token(raw: str, *, now: datetime, address: str) -> Identity:
    """Return who a bearer token is and record its use at most once a minute; Unauthenticated otherwise."""
    digest = _digest(raw)
    token = ApiToken.objects.filter(digest=digest).first()
    if token is None or not hmac.compare_digest(token.digest, digest) or not token.is_live(now):
        raise Unauthenticated("unauthenticated", "This token is unknown, expired or revoked.")
    if token.last_used_at is None or now - token.last_used_at > USE_RECORDED_EVERY:
        ApiToken.objects.filter(pk=token.pk).update(last_used_at=now, last_used_from=address)
    return Identity(
        name=f"run:{token.run}" if token.run else f"token:{token.name}",
        role=Role(token.role),
        token_id=token.pk,
        project=token.project,
        run=token.run,
    )


def identify(request: HttpRequest) -> Identity:
    """Return who sends a request: a token where one is sent to REST, else the session."""
    header = request.headers.get("Authorization")
    if header is not None and request.path.startswith(BEARER_PREFIXES):
        scheme, _, raw = header.partition(" ")
        if scheme.lower() != "bearer" or not raw.strip():
            raise Unauthenticated("unauthenticated", "Send a token as Authorization: Bearer …")
        return identify_token(raw.strip(), now=timezone.now(), address=address_of(request))
    return identify_user(request.user, request.session.session_key or "")


def expelled(identities: set[Identity], *, now: datetime) -> set[Identity]:
    """Return those who may no longer listen: user or token gone, session over, role lost. Three queries at most."""
    by_user = {who.user_id for who in identities if who.user_id is not None}
    by_token = {who.token_id for who in identities if who.token_id is not None}
    roles: dict[int, Role | None] = {}
    hashes: dict[int, str] = {}
    sessions: set[str] = set()
    tokens: set[int] = set()
    if by_user:
        users = get_user_model()._default_manager.filter(pk__in=by_user, is_active=True)  # noqa: SLF001
        for user in users.prefetch_related("groups"):
            hashes[user.pk] = user.get_session_auth_hash()
            roles[user.pk] = _greatest(user.is_superuser, [group.name for group in user.groups.all()])
        keys = {who.session for who in identities if who.session}
        sessions = set(
            Session.objects.filter(session_key__in=keys, expire_date__gt=now).values_list("session_key", flat=True)
        )
    if by_token:
        tokens = {token.pk for token in ApiToken.objects.filter(pk__in=by_token) if token.is_live(now)}
    return {
        who
        for who in identities
        if (who.token_id is not None and who.token_id not in tokens)
        or (who.user_id is not None and _has_lost(who, roles, hashes, sessions))
    }


def _has_lost(who: Identity, roles: dict[int, Role | None], hashes: dict[int, str], sessions: set[str]) -> bool:
    """Say whether a signed-in user's right of a moment ago is gone."""
    user = who.user_id or 0
    return (
        roles.get(user) != who.role
        or who.session not in sessions
        or bool(who.auth_hash and hashes.get(user) != who.auth_hash)
    )


def address_of(request: HttpRequest) -> str:
    """Return the peer's address; behind a proxy on this machine, the one that the proxy saw."""
    peer = request.META.get("REMOTE_ADDR") or ""
    forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
    return forwarded[:64] if forwarded and peer in LOOPBACK else peer


def actor(request: HttpRequest) -> By:
    """Return who runs a verb and through which door, as events tell it."""
    identity: Identity = request.identity  # type: ignore[attr-defined]
    if identity.run:
        via = Via.RUN
    elif request.path.startswith("/api/"):
        via = Via.API
    else:
        via = Via.ADMIN if request.path.startswith("/admin/") else Via.PAGE
    return By(identity.name, via, address_of(request), identity.run)


def issue(
    name: str,
    *,
    role: Role,
    by: By,
    now: datetime,
    project: str = "",
    life: timedelta | None = None,
    run: str = "",
) -> tuple[ApiToken, str]:
    """Make a token and return it with its text, which is never to be had again.

    Refuses a blank name (Rejected) and one that a live token bears (Conflict). Records token.issued; of a run's none.
    """
    name = name.strip()
    if not name or len(name) > 80:
        raise Rejected("token-name", "Give the token a name of 1 to 80 characters.")
    raw = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with writing():
        if ApiToken.objects.filter(name=name, revoked_at=None).exists():
            raise Conflict("token-name-taken", f"A live token is already called {name}. Revoke it or choose another.")
        token = ApiToken.objects.create(
            name=name,
            role=role,
            project=project,
            run=run,
            digest=_digest(raw),
            hint=raw[len(TOKEN_PREFIX) :][:4],
            created_by=by.name,
            created_at=now,
            expires_at=now + life if life else None,
        )
        # Of a run's token its task tells, when it starts and when it ends.
        if not run:
            record("token.issued", f"token:{token.pk}", by=by, now=now, project=project, name=name, role=str(role))
    return token, raw


def revoke(token: ApiToken, *, by: By, now: datetime) -> None:
    """End a token for good; its open sockets close within seconds. Conflict when it was over already."""
    with writing():
        if not ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=now):
            raise Conflict("token-revoked", f"{token.name} was revoked already.")
        if not token.run:
            record("token.revoked", f"token:{token.pk}", by=by, now=now, project=token.project, name=token.name)


def invite(user: User, *, by: By, now: datetime) -> str:
    """Make a one-time sign-in link for a user, good for a day, and return its path. Records user.invited."""
    raw = secrets.token_urlsafe(32)
    with writing():
        SignInLink.objects.create(user=user, digest=_digest(raw), created_at=now, expires_at=now + LINK_LIFE)
        record("user.invited", f"user:{user.get_username()}", by=by, now=now)
    return f"/login/link/{raw}/"


def find_link(raw: str, *, now: datetime) -> SignInLink:
    """Return a link that can still be used; Missing for one used, expired or unknown."""
    link = SignInLink.objects.select_related("user").filter(digest=_digest(raw)).first()
    if link is None or link.used_at is not None or link.expires_at <= now or not link.user.is_active:
        raise Missing("link-gone", "This sign-in link was used already or has expired.")
    return link


def consume(raw: str, *, address: str, now: datetime) -> Any:
    """Use a sign-in link up and return its user. Of two at once one wins, the other hears Missing."""
    link = find_link(raw, now=now)
    with writing():
        if not SignInLink.objects.filter(pk=link.pk, used_at=None).update(used_at=now):
            raise Missing("link-gone", "This sign-in link was used already or has expired.")
        by = By(f"user:{link.user.get_username()}", Via.PAGE, address)
        record("user.signed_in", by.name, by=by, now=now, means="link")
    return link.user


def tell(kind: str, username: str, *, by: By, now: datetime, **payload: Any) -> None:
    """Tell the log of a change to an account (`user.…`) that Django's own forms make; alone or inside `writing()`."""
    with writing():
        record(kind, f"user:{username}", by=by, now=now, **payload)


def expire(link: SignInLink, *, by: By, now: datetime) -> None:
    """End a sign-in link before its time. Conflict when it was used or over already. Records user.link_expired."""
    with writing():
        if not SignInLink.objects.filter(pk=link.pk, used_at=None, expires_at__gt=now).update(expires_at=now):
            raise Conflict("link-gone", f"The link of {link.user} was used already or has expired.")
        record("user.link_expired", f"user:{link.user.get_username()}", by=by, now=now)


def check_attempts(username: str, address: str, *, now: datetime) -> None:
    """Refuse a sign-in (TooMany) after 8 failures of a name or 30 of an address within 10 minutes."""
    recent = Event.objects.filter(kind="user.sign_in_failed", at__gt=now - FAILURES_WINDOW)
    of_name = recent.filter(subject=f"user:{username}"[:200]).count()
    if of_name >= FAILURES_PER_NAME or recent.filter(payload__address=address).count() >= FAILURES_PER_ADDRESS:
        raise TooMany("too-many-attempts", "Too many failed attempts. Wait ten minutes, or ask for a sign-in link.")


def note_sign_in(username: str, address: str, *, ok: bool, now: datetime) -> None:
    """Tell the log of a sign-in that worked or failed."""
    subject = f"user:{username}"[:200]
    with writing():
        record(
            "user.signed_in" if ok else "user.sign_in_failed",
            subject,
            by=By(subject if ok else "", Via.PAGE, address),
            now=now,
            means="password",
        )


def _digest(raw: str) -> str:
    return hashlib.sha256(raw.encode("utf-8", "replace")).hexdigest()


def need(identity: Identity, role: Role) -> None:
    """Raise Forbidden unless the role is held."""
    if not identity.may(role):
        raise Forbidden("forbidden", f"This needs the role {role}; {identity.name} has {identity.role}.")
