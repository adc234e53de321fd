"""The table that benchmarks print."""

import sys


class Table:
    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str]] = [("what", "measured", "must / beside")]

    def row(self, what: str, measured: str, must: str) -> None:
        """Keep a row for the table, and show it at once to who waits."""
        self._rows.append((what, measured, must))
        print(f"  {what}: {measured}", file=sys.stderr, flush=True)

    def print(self) -> None:
        widths = [max(len(row[column]) for row in self._rows) for column in range(3)]
        for number, row in enumerate(self._rows):
            print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
            if number == 0:
                print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
