"""Import all journals of the settings in a process of its own, and say what the database holds then.

`python -m tests.projects.one_import` prints `begun`, imports, and prints one JSON object.
"""

import json
import sys


def held() -> dict[str, list]:
    """Return what was derived, without keys, which a killed import may have used up."""
    from projects.models import Event, JournalRecord, Turn

    records = JournalRecord.objects.order_by("file__name", "file__generation", "offset")
    turns = Turn.objects.order_by("session_id", "turn_id")
    told = Event.objects.filter(kind__startswith="turn.").order_by("id")
    return {
        "records": list(records.values_list("file__name", "line_no", "offset", "length", "sha256", "status", "key")),
        "turns": list(turns.values_list("session_id", "turn_id", "effective_state", "pending", "first_line", "folded")),
        "events": list(told.values_list("subject", "kind")),
    }


def main() -> None:
    import django

    django.setup()
    from django.utils import timezone

    from projects import intake

    sys.stdout.write("begun\n")
    sys.stdout.flush()
    intake.rescan(now=timezone.now())
    json.dump(held(), sys.stdout)


if __name__ == "__main__":
    main()
