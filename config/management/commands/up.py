import contextlib
import os
import signal
import sys
import threading
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection
from django.utils import timezone

from config import environment, up
from projects import access
from projects.errors import DomainError
from projects.events import By


class Command(BaseCommand):
    # Checked once the demonstration has made its workspace.
    requires_system_checks = ()
    help = "Start Andon: migrate, make the first administrator, run web and worker until Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", help="address to listen on (default: ANDON_BIND, 127.0.0.1)")
        parser.add_argument("--port", help="port to listen on (default: ANDON_PORT, 8321)")
        parser.add_argument("--no-worker", action="store_true", help="web only; a worker runs elsewhere")
        parser.add_argument("--no-web", action="store_true", help="worker only; the pages are served elsewhere")
        parser.add_argument(
            "--demo", action="store_true", help="make two demonstration projects and run a loop in one of them"
        )

        parser.add_argument(
            "--pace", type=float, default=3.0, metavar="SECONDS", help="of one step of the demonstration's agent (3)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["no_worker"] and options["no_web"]:
            raise CommandError("--no-worker and --no-web together leave nothing to run.")
        env, read = self._environment(options)
        bind, port = read.bind, read.port
        url, public = up.base_url(bind, port), up.public_url(read)
        printer = up.Printer(sys.stdout)
        try:
            lock = up.hold_home(settings.ANDON_HOME, url)
        except up.AlreadyUp as refusal:
            raise CommandError(str(refusal), returncode=75) from None
        with lock:
            if not options["no_web"] and not up.is_port_free(bind, port):
                raise CommandError(f"Port {port} on {bind} is taken. Choose another with --port.")
            printer.line("andon", f"preparing {settings.ANDON_HOME}")
            call_command("migrate", verbosity=0, interactive=False)
            if not options["no_web"]:
                with contextlib.redirect_stdout(None):
                    call_command("collectstatic", verbosity=0, interactive=False, clear=True)
            link = first_admin_link()
            demo = self._demo(printer) if options["demo"] else None
            self.check()
            children = [
                up.Child(name, up.manage(name), env)
                for name, wanted in (("worker", not options["no_worker"]), ("web", not options["no_web"]))
                if wanted
            ]
            supervisor = up.Supervisor(children, printer)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, supervisor.ask_stop)

            def on_ready() -> None:
                printer.line("andon", f"Andon is ready at {public}")
                if link:
                    printer.line("andon", f"Sign in as admin, once: {public}{link}")
                if demo is not None:
                    self._run_demo_loop(demo, options["pace"], printer)

            supervisor.run(url, on_ready, wait_ready=not options["no_web"])
            printer.line("andon", "stopped")

    def _environment(self, options: dict[str, Any]) -> tuple[dict[str, str], environment.Environment]:
        env = dict(os.environ)
        if options["host"]:
            env["ANDON_BIND"] = options["host"]
        if options["port"]:
            env["ANDON_PORT"] = str(options["port"])
        if options["no_worker"]:
            env["ANDON_WEB_ONLY"] = "1"
        try:
            read = environment.read(env)
        except environment.Nonsense as refusal:
            raise CommandError(str(refusal)) from None
        return env, read

    def _demo(self, printer: up.Printer) -> Path | None:
        """Make the demonstration projects; returns the one whose loop has something to do."""
        from config.demo import make_demo
        from projects import ralph

        root = settings.ANDON_WORKSPACE[0]
        root.mkdir(parents=True, exist_ok=True)
        made = make_demo(root)
        printer.line("andon", f"demonstration projects: {', '.join(str(path) for path in made)}")
        project = made[0]
        prd = ralph.find_prd(project)
        document = ralph.parse_prd(ralph.read_inside(project, prd, ralph.MAX_BYTES)) if prd else None
        if document is None or ralph.current_story(document.stories) is None:
            printer.line("andon", f"all stories of {project.name} are closed; delete {project} to see them done again")
            return None
        return project

    def _run_demo_loop(self, project: Path, pace: float, printer: up.Printer) -> None:
        """Start the demonstration's loop as a person would; beside the parent, which has children to keep."""
        from config.demo import start_loop

        def start() -> None:
            try:
                printer.line("andon", start_loop(project, pace))
            except DomainError as refusal:
                printer.line("andon", f"the demonstration's loop is not started: {refusal.detail}")
            finally:
                connection.close()

        threading.Thread(target=start, name="demo", daemon=True).start()


def first_admin_link() -> str:
    """Return the path of a sign-in link for `admin`, made where nobody could sign in yet; "" otherwise."""
    users = get_user_model().objects
    if not users.filter(is_superuser=True, is_active=True).exists():
        user = users.create_superuser("admin", password=None)
    else:
        found = users.filter(username="admin", is_superuser=True, is_active=True).first()
        if found is None or found.has_usable_password() or found.last_login is not None:
            return ""
        user = found
    return access.invite(user, by=By("command", "admin"), now=timezone.now())
