"""How a person declares a service: a form that becomes one spec, and a box for a whole spec file."""

import re
from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from projects.models import Project
from services import specs
from services.states import Restart

_WHOLE = re.compile(r"-?[0-9]{1,15}")
_FRACTION = re.compile(r"-?[0-9]{1,15}\.[0-9]{1,15}")
# The field of this form for each field that a reason may speak of.
PLACES = {
    "healthcheck": "check_type",
    "healthcheck.type": "check_type",
    "healthcheck.shell": "check_cmd",
    "healthcheck.cmd": "check_cmd",
    "healthcheck.args": "check_args",
    **{
        f"healthcheck.{name}": name
        for name in (
            *("url", "expect_status", "port", "expect_regex"),
            *("timeout_s", "interval_s", "period_s", "failure_threshold", "success_threshold"),
        )
    },
}


def _line(label: Any, *, hint: Any = "", initial: str = "", number: bool = False) -> forms.CharField:
    attributes = {"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}
    if number:
        attributes |= {"inputmode": "decimal", "class": "short"}
    widget = forms.TextInput(attributes)
    return forms.CharField(required=False, label=label, help_text=hint, initial=initial, widget=widget)


def _lines(label: Any, hint: Any, rows: int = 3) -> forms.CharField:
    attributes = {"rows": rows, "autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}
    return forms.CharField(
        required=False, strip=False, label=label, help_text=hint, widget=forms.Textarea({**attributes, "class": "mono"})
    )


class _OfProject(forms.Form):
    project = forms.ChoiceField(label=gettext_lazy("Project"))

    def __init__(self, *args: Any, slugs: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["project"].choices = [(slug, slug) for slug in slugs]  # type: ignore[attr-defined]


class SpecForm(_OfProject):
    """One service. It judges nothing itself: what was typed becomes a spec, and the validator says what is wrong."""

    name = _line(gettext_lazy("Name"), hint=gettext_lazy("lower-case letters, digits and single dashes"))
    cmd = _line(gettext_lazy("Program"), hint=gettext_lazy("by its bare name; no shell reads it"))
    args = _lines(gettext_lazy("Arguments"), gettext_lazy("one a line"))
    cwd = _line(gettext_lazy("Directory"), hint=gettext_lazy("absolute; empty = the project's root"))
    env = _lines(
        gettext_lazy("Environment"),
        gettext_lazy("KEY=value, one a line; no credentials. Values are never shown again."),
    )
    ports = _line(gettext_lazy("Ports"), hint=gettext_lazy("all that it listens on, with commas between"))
    ttl_minutes = _line(
        gettext_lazy("Minutes to live"), hint=gettext_lazy("1 to 1440, then it is stopped"), initial="240", number=True
    )
    restart = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Start again"),
        choices=[
            (Restart.NEVER, gettext_lazy("never")),
            (Restart.ON_FAILURE, gettext_lazy("when it fails")),
            (Restart.ALWAYS, gettext_lazy("always")),
        ],
    )
    stop_grace_s = _line(gettext_lazy("Seconds between TERM and KILL"), initial="10", number=True)
    check_type = forms.ChoiceField(
        required=False,
        label=gettext_lazy("It is healthy when"),
        choices=[
            ("http", gettext_lazy("an address answers")),
            ("tcp", gettext_lazy("a port accepts connections")),
            ("command", gettext_lazy("a command prints something")),
        ],
    )
    url = _line(gettext_lazy("Address"), hint=gettext_lazy("of this machine, such as http://127.0.0.1:3000/"))
    expect_status = _line(gettext_lazy("Expected status"), initial="200", number=True)
    port = _line(gettext_lazy("Port"), number=True)
    check_cmd = _line(gettext_lazy("Command"), hint=gettext_lazy("split into words as a shell would, read by none"))
    check_args = _lines(gettext_lazy("More arguments"), gettext_lazy("one a line"), 2)
    expect_regex = _line(gettext_lazy("Expected output"), hint=gettext_lazy("a regular expression (RE2)"))
    timeout_s = _line(
        gettext_lazy("Seconds to the first success"), hint=gettext_lazy("then it has failed"), initial="60", number=True
    )
    interval_s = _line(gettext_lazy("Seconds between tries until then"), initial="1", number=True)
    period_s = _line(gettext_lazy("Seconds between probes afterwards"), initial="30", number=True)
    failure_threshold = _line(gettext_lazy("Misses until unhealthy"), initial="3", number=True)
    success_threshold = _line(gettext_lazy("Successes until healthy again"), initial="1", number=True)

    def clean_env(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in _split(self.cleaned_data["env"]):
            key, sign, value = line.partition("=")
            if not sign:
                raise forms.ValidationError(_("Write KEY=value: %s") % line[:80])
            if key.strip() in found:
                raise forms.ValidationError(_("%s stands there twice.") % key.strip()[:80])
            found[key.strip()] = value
        return found

    def document(self) -> dict[str, Any]:
        """Return the spec file that the form stands for. What is no number stays text, for the validator to name."""
        typed = self.cleaned_data
        check: dict[str, Any] = {"type": typed["check_type"] or "http", "timeout_s": _number(typed["timeout_s"])}
        match check["type"]:
            case "http":
                check |= {"url": typed["url"], "expect_status": _number(typed["expect_status"])}
            case "tcp":
                check |= {"port": _number(typed["port"])}
            case _:
                check |= {"cmd": typed["check_cmd"], "args": _split(typed["check_args"]), "shell": False}
                check["expect_regex"] = typed["expect_regex"]
        for name in ("interval_s", "period_s", "failure_threshold", "success_threshold"):
            check[name] = _number(typed[name])
        spec = {
            "name": typed["name"],
            "cmd": typed["cmd"],
            "args": _split(typed["args"]),
            "cwd": typed["cwd"] or None,
            "env": typed["env"],
            "ports": [_number(word) for word in re.split(r"[\s,;]+", typed["ports"]) if word],
            "ttl_minutes": _number(typed["ttl_minutes"]),
            "healthcheck": check,
            "restart": typed["restart"] or None,
            "stop_grace_s": _number(typed["stop_grace_s"]),
        }
        return {"specs": [spec]}

    def refuse(self, reason: str) -> None:
        """Show a reason of the validator, or of a verb, beside the field that it speaks of."""
        _index, field = specs.field_of(reason)
        place = PLACES.get(field or "", field)
        # There is but one: which of the file's it is says nothing here.
        self.add_error(place if place in self.fields else None, reason.replace("spec[0]: ", "", 1))


class FileForm(_OfProject):
    """A whole spec file."""

    text = forms.CharField(
        strip=False,
        label=gettext_lazy("Spec file"),
        help_text=gettext_lazy("JSON, at most 64 KiB and five services, as an agent writes it"),
        widget=forms.Textarea({"rows": 14, "class": "mono", "spellcheck": "false", "autocomplete": "off"}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # It stands beside the other form, which has a project too.
        super().__init__(*args, auto_id="id_file_%s", **kwargs)

    def refuse(self, reason: str) -> None:
        """Show a reason below the box."""
        self.add_error("text", reason)


def known_slugs() -> list[str]:
    """Return the projects in which something can be declared."""
    return list(Project.objects.filter(missing_since=None).order_by("slug").values_list("slug", flat=True))


def _split(text: str) -> list[str]:
    return [line for line in text.replace("\r", "").split("\n") if line.strip()]


def _number(text: str) -> Any:
    """Return a number as JSON would have it, None for "", what is none as it was typed."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _FRACTION.fullmatch(text) else text or None
