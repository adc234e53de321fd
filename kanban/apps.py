from django.apps import AppConfig


class KanbanConfig(AppConfig):
    name = "kanban"

    def ready(self) -> None:
        """Hang the kanban's verbs where what is below calls upward."""
        from kanban import dispatch, gate, lifecycle, sweeps, workers
        from kanban.queries import titles
        from projects.queries import titles_of
        from services import lifecycle as services
        from services import starting
        from services.states import Purpose

        services.on_start[Purpose.WORKER] = lifecycle.spawned
        services.on_end[Purpose.WORKER] = lifecycle.exited
        starting.prepare[Purpose.WORKER] = workers.prepare
        lifecycle.on_free.append(dispatch.wake)
        lifecycle.on_left.append(gate.wake)
        dispatch.passes.append(sweeps.tick)
        titles_of["task"] = titles
