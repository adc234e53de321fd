"""REST of notices (mounted at /api/kanban/subscriptions): who is told of which events, and what became of it."""

from typing import Any, Literal

from django.http import HttpRequest
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables
from ninja import Field, Router, Schema, Status
from ninja.params.functions import Query

from kanban.lifecycle import delivering, subscribing
from kanban.models import Subscription
from kanban.queries import notices
from projects.access import Identity, actor
from projects.errors import Forbidden
from projects.schemas import ErrorOut

PAGE = 100

router = Router(tags=["notices"])
REFUSED = frozenset({401, 403, 404, 409, 422})


class SubscriptionIn(Schema):
    """`kind` and `subject` are beginnings, "" = all; `project` is a slug; of a webhook `secret` may be chosen."""

    target: str = Field("webhook", max_length=20)
    address: str = Field(max_length=4000)
    kind: str = Field("", max_length=200)
    subject: str = Field("", max_length=400)
    project: str = Field("", max_length=200)
    secret: str = Field("", max_length=400)


class SubscriptionOut(Schema):
    id: int
    target: str
    address: str
    kind: str
    subject: str
    project: str
    created_by: str
    created_at: int
    paused_at: int | None
    paused_by: str
    paused_reason: str
    failures: int
    last_error: str
    retry_at: int | None
    last_delivered_at: int | None
    pending: int
    dead: int


class SubscriptionsOut(Schema):
    subscriptions: list[SubscriptionOut]


class OneSubscriptionOut(Schema):
    subscription: SubscriptionOut


class MadeOut(Schema):
    """`secret` signs the webhooks and is shown this once."""

    subscription: SubscriptionOut
    secret: str


class DeliveryOut(Schema):
    id: int
    delivery: str
    event_id: int | None
    kind: str
    subject: str
    status: str
    attempts: int
    created_at: int
    next_try_at: int | None
    delivered_at: int | None
    response_status: int | None
    error: str


class DeliveriesOut(Schema):
    deliveries: list[DeliveryOut]


class SentOut(Schema):
    delivery: DeliveryOut


def _who(request: HttpRequest) -> Identity:
    identity: Identity = request.identity  # type: ignore[attr-defined]
    return identity


def _one(request: HttpRequest, row: Subscription) -> dict[str, Any]:
    who = _who(request)
    return {"subscription": notices.subscription_document(notices.subscription(who, row.pk), who)}


@router.get("", response={200: SubscriptionsOut, frozenset({401, 403}): ErrorOut})
def listed(request: HttpRequest) -> dict[str, Any]:
    """All subscriptions; secrets never, whole addresses only to who made them and to administrators."""
    who = _who(request)
    return {"subscriptions": [notices.subscription_document(row, who) for row in notices.subscriptions(who)]}


@router.post("", response={201: MadeOut, frozenset({400, 401, 403, 409, 422}): ErrorOut})
@sensitive_variables("secret", "body")
def subscribe(request: HttpRequest, body: SubscriptionIn) -> Status[Any]:
    """Have events told to a webhook or an e-mail address from now on. The secret is in this answer only."""
    bound = _who(request).project
    if bound and body.project not in {"", bound}:
        raise Forbidden("forbidden", f"This token is bound to the project {bound}.")
    row, secret = subscribing.subscribe(
        body.target,
        body.address,
        kind=body.kind,
        about=body.subject,
        project=bound or body.project,
        secret=body.secret,
        by=actor(request),
        now=timezone.now(),
    )
    return Status(201, {**_one(request, row), "secret": secret})


@router.delete("/{int:number}", response={204: None, REFUSED: ErrorOut})
def unsubscribe(request: HttpRequest, number: int) -> Status[Any]:
    """Delete a subscription with what waits for it."""
    subscribing.unsubscribe(notices.changeable(_who(request), number), by=actor(request), now=timezone.now())
    return Status(204, None)


@router.post("/{int:number}/test", response={202: SentOut, REFUSED: ErrorOut})
def test(request: HttpRequest, number: int) -> Status[Any]:
    """Send a test within a second or two; its delivery, or the event notice.tested, says what came of it."""
    row = notices.changeable(_who(request), number)
    made = subscribing.test(row, by=actor(request), now=timezone.now())
    return Status(202, {"delivery": notices.delivery_document(made)})


@router.post("/{int:number}/pause", response={200: OneSubscriptionOut, REFUSED: ErrorOut})
def pause(request: HttpRequest, number: int) -> dict[str, Any]:
    """Send nothing more until it is resumed; nothing is lost meanwhile."""
    row = notices.changeable(_who(request), number)
    return _one(request, subscribing.pause(row, by=actor(request), now=timezone.now()))


@router.post("/{int:number}/resume", response={200: OneSubscriptionOut, REFUSED: ErrorOut})
def resume(request: HttpRequest, number: int) -> dict[str, Any]:
    """Send what waits, at once, and what has happened since."""
    row = notices.changeable(_who(request), number)
    return _one(request, subscribing.resume(row, by=actor(request), now=timezone.now()))


@router.get("/{int:number}/deliveries", response={200: DeliveriesOut, REFUSED - {409}: ErrorOut})
def deliveries(
    request: HttpRequest,
    number: int,
    status: Literal["", "pending", "delivered", "dead"] = "",
    before: int = Query(0, ge=0, le=2**62),
) -> dict[str, Any]:
    """What was and is to be sent, newest first, 100 at once; `before` the id of the last one goes on."""
    rows = notices.deliveries(notices.changeable(_who(request), number), status)
    if before:
        rows = rows.filter(pk__lt=before)
    return {"deliveries": [notices.delivery_document(row) for row in rows[:PAGE]]}


@router.post("/{int:number}/deliveries/{int:delivery}/send-again", response={200: SentOut, REFUSED: ErrorOut})
def send_again(request: HttpRequest, number: int, delivery: int) -> dict[str, Any]:
    """Send what was given up, or delivered, once more under the same delivery id."""
    found = notices.delivery(_who(request), number, delivery)
    return {"delivery": notices.delivery_document(delivering.send_again(found, by=actor(request), now=timezone.now()))}
