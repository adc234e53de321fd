"""What REST and pages alike do with a declaration."""

import pytest
from django.utils import timezone

from projects.errors import Conflict, DomainError, Unavailable
from projects.events import By
from projects.models import Event
from services import acceptance, specs
from services.models import ManagedProcess

ANNA = By("user:anna", "page")


@pytest.mark.parametrize(("field", "column"), [("written_by", "owner_agent"), ("wi_id", "owner_wi")])
def test_an_owner_is_as_long_as_its_column_at_most(field: str, column: str) -> None:
    most = ManagedProcess._meta.get_field(column).max_length

    def found(length: int) -> specs.Accepted | specs.Invalid:
        owner = {"written_by": None, "wi_id": None, field: "x" * length}
        return acceptance.of_known_length(specs.Accepted(specs=[], warnings=[], **owner))

    assert isinstance(found(most), specs.Accepted)
    assert found(most + 1) == specs.Invalid(f"{field}-too-long (>{most})")


def test_what_the_validator_refused_stays_refused() -> None:
    assert acceptance.of_known_length(specs.Invalid("specs-empty")) == specs.Invalid("specs-empty")


@pytest.mark.django_db
class TestRefusals:
    def done(self, project, refusal: DomainError | None) -> list[dict]:
        since = timezone.now()
        with acceptance.refusals_told(project, wi="US-001", by=ANNA):
            if refusal is not None:
                raise refusal
        return list(Event.objects.filter(at__gte=since))

    @pytest.mark.parametrize("code", sorted(acceptance.REFUSALS))
    def test_is_told_with_its_owner_and_goes_on(self, imported, code):
        with pytest.raises(Conflict, match="because"):
            self.done(imported("demo"), Conflict(code, "because"))
        event = Event.objects.get(kind="service.rejected")
        assert (event.actor, event.payload["reason"], event.payload["owner"]) == ("user:anna", "because", "US-001")

    @pytest.mark.parametrize(
        "refusal", [None, Conflict("start-failed", "because"), Unavailable("no-worker", "because")]
    )
    def test_nothing_is_told_of_what_was_reserved_or_not_looked_at(self, imported, refusal):
        project = imported("demo")
        if refusal is None:
            self.done(project, None)
        else:
            with pytest.raises(type(refusal)):
                self.done(project, refusal)
        assert not Event.objects.filter(kind="service.rejected").exists()
