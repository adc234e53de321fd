"""What REST and pages alike do with a declaration: what their columns can hold, and what is told of a refusal."""

import contextlib
from collections.abc import Iterator

from django.utils import timezone

from projects.errors import Conflict
from projects.events import By
from projects.models import Project
from services import lifecycle, specs

# As long as their columns.
LONGEST_OWNER = {"written_by": 128, "wi_id": 200}
# Reasons for which nothing of a declaration was reserved.
REFUSALS = frozenset({"name-already-active", "port-conflict", "quota-exceeded"})


def of_known_length(found: specs.Accepted | specs.Invalid) -> specs.Accepted | specs.Invalid:
    """Return what the validator found, or Invalid when the owner of an accepted file is longer than its column."""
    if isinstance(found, specs.Accepted):
        for field, most in LONGEST_OWNER.items():
            if len(getattr(found, field) or "") > most:
                return specs.Invalid(f"{field}-too-long (>{most})")
    return found


@contextlib.contextmanager
def refusals_told(project: Project, *, wi: str = "", by: By) -> Iterator[None]:
    """Record service.rejected when what is done here raises a Conflict of REFUSALS; the Conflict goes on."""
    try:
        yield
    except Conflict as refusal:
        if refusal.code in REFUSALS:
            lifecycle.reject(project, refusal.detail, wi=wi, by=by, now=timezone.now())
        raise
