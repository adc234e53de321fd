"""The order of a list as its address asks for it: `sort=name`, or `sort=-name` for the other way round."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from django.db.models import Case, F, Model, QuerySet, Value, When
from django.db.models.expressions import OrderBy

Row = TypeVar("Row")
M = TypeVar("M", bound=Model)


class By(NamedTuple):
    """What a list can be sorted by: its word, and its fields in rising order.

    A field is a column or an expression where the database sorts, and a function of a row where Python does.
    `begins_high`: the first click asks for the greatest.
    """

    label: Any
    fields: tuple[Any, ...]
    begins_high: bool = False


class Head(NamedTuple):
    """A head of a table: `order` is ascending, descending or "", `sort` what a click asks for."""

    label: str
    order: str
    sort: str


class Choice(NamedTuple):
    """One entry of a menu of orders; the default's value is "", so that it leaves no trace in an address."""

    value: str
    label: str
    is_chosen: bool


class Order:
    """What of `sorts` is asked for; anything else is the `default`. What has no value comes last both ways."""

    def __init__(self, sorts: Mapping[str, By], asked: str, *, default: str) -> None:
        self._sorts, self._default = sorts, default
        self._sort = asked if asked.removeprefix("-") in sorts else default
        self.name = self._sort.removeprefix("-")
        self.is_falling = self._sort.startswith("-")

    @property
    def asked(self) -> str:
        """What an address has to say for this order, "" for the default."""
        return "" if self._sort == self._default else self._sort

    def rows(self, rows: QuerySet[M]) -> QuerySet[M]:
        """Return rows of the database in this order; equal ones by their key, so that no page repeats another's."""
        nullable = {field.name: field.null for field in rows.model._meta.concrete_fields}  # noqa: SLF001
        order = [
            OrderBy(
                F(field) if isinstance(field, str) else field,
                descending=self.is_falling,
                # A column without nulls may be read from its index.
                nulls_last=(not isinstance(field, str) or nullable.get(field, True)) or None,
            )
            for field in self._sorts[self.name].fields
        ]
        return rows.order_by(*order, "pk")

    def of(self, rows: Iterable[Row]) -> list[Row]:
        """Return rows that are all in memory in this order; equal ones stay as they were."""
        found = list(rows)
        for value in reversed(self._sorts[self.name].fields):
            found = _sorted(found, value, reverse=self.is_falling)
        return found

    @cached_property
    def heads(self) -> dict[str, Head]:
        return {name: self._head(name, by) for name, by in self._sorts.items()}

    @cached_property
    def choices(self) -> list[Choice]:
        found = []
        for name, by in self._sorts.items():
            for value in self._ways(name, by):
                label = f"{by.label} {'↓' if value.startswith('-') else '↑'}"
                found.append(Choice("" if value == self._default else value, label, value == self._sort))
        return found

    def _head(self, name: str, by: By) -> Head:
        first, second = self._ways(name, by)
        order = {name: "ascending", f"-{name}": "descending"}.get(self._sort, "")
        return Head(str(by.label), order, second if self._sort == first else first)

    @staticmethod
    def _ways(name: str, by: By) -> tuple[str, str]:
        return (f"-{name}", name) if by.begins_high else (name, f"-{name}")


def place(field: str, values: Sequence[str]) -> Case:
    """Return the expression of a column's place among `values`; others come behind them."""
    known = (When(**{field: value}, then=Value(at)) for at, value in enumerate(values))
    return Case(*known, default=Value(len(values)))


def _sorted(rows: list[Row], value: Callable[[Row], Any], *, reverse: bool) -> list[Row]:
    known = [row for row in rows if value(row) is not None]
    return sorted(known, key=value, reverse=reverse) + [row for row in rows if value(row) is None]
