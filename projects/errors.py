"""Refusals: what happened, mapped once to HTTP (config/api.py and config/views.py)."""

from typing import Any


class DomainError(Exception):
    """A verb refused. `code` is stable and kebab-case; `detail` is one sentence for a person."""

    status = 500

    def __init__(self, code: str, detail: str, **extra: Any) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.extra = extra


class Rejected(DomainError):
    status = 400


class Unauthenticated(DomainError):
    status = 401


class Forbidden(DomainError):
    status = 403


class Missing(DomainError):
    status = 404


class Conflict(DomainError):
    status = 409


class Unprocessable(DomainError):
    status = 422


class TooMany(DomainError):
    status = 429


class Broken(DomainError):
    """Something on disk is not what it should be, and no retry will help."""

    status = 500


class Unavailable(DomainError):
    status = 503


class Unfinished(DomainError):
    """It was begun and goes on, but was not over in time."""

    status = 504
