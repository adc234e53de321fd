"""What sentences are made of: words for times and ends, and the plain forms that many kinds share."""

import signal
from collections.abc import Callable
from typing import Any

from django.utils.translation import gettext as _

Payload = dict[str, Any]
# Makes the sentence of one kind: from (the subject's name and its parts, the payload).
Tell = Callable[[dict[str, str], Payload], str]


def length(seconds: float) -> str:
    """Return a duration in words: `42 s`, `6 min 12 s`, `3 h 5 min`, `4 d`."""
    whole = int(seconds)
    if whole < 60:
        return _("%d s") % whole
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return _("%(m)d min %(s)d s") % {"m": minutes, "s": rest} if rest else _("%d min") % minutes
    if whole < 86400:
        hours, rest = divmod(whole // 60, 60)
        return _("%(h)d h %(m)d min") % {"h": hours, "m": rest} if rest else _("%d h") % hours
    return _("%d d") % (whole // 86400)


def plain(payload: Payload) -> str:
    """Return a payload as `key: value` pairs, without what every event says."""
    told = {key: value for key, value in payload.items() if key not in {"via", "address"}}
    return " · ".join(
        f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in told.items()
    )


def exit_words(code: Any) -> str:
    """Return how a process ended: `exit code 3`, `SIGKILL`; "" when that is not known."""
    if not isinstance(code, int):
        return ""
    if code >= 0:
        return _("exit code %d") % code
    try:
        return signal.Signals(-code).name
    except ValueError:
        return _("signal %d") % -code


def says(text: str, *, reason: str = "") -> Tell:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told = _(text) % context
        because = payload.get(reason) if reason else None
        return f"{told}: {because}" if because else told

    return tell


def changed(context: dict[str, str], payload: Payload) -> str:
    what = ", ".join(str(item) for item in payload.get("changed", []))
    return _("%(name)s changed: %(what)s") % {**context, "what": what}
