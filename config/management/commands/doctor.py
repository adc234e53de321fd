import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from config import doctor

MARKS = {doctor.OK: "✓", doctor.WARN: "!", doctor.FAIL: "✗"}


class Command(BaseCommand):
    help = "Say what is wrong with this installation, with a next step each. Exit code 1 when something fails."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print a list of {check, status, detail, next_step}")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = doctor.examine(timezone.now())
        if options["json"]:
            self.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1))
        else:
            for finding in findings:
                step = f" -> {finding.next_step}" if finding.next_step else ""
                line = f"{MARKS[finding.status]} {finding.status:<4} {finding.check:<9} {finding.detail}{step}"
                encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
                self.stdout.write(line.encode(encoding, "replace").decode(encoding))
        if any(finding.status == doctor.FAIL for finding in findings):
            sys.exit(1)
