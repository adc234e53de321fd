from django.urls import path

from kanban.views import board, listing, moving, profiles, runs, tasks, verbs

urlpatterns = [
    path("", board.index, name="kanban"),
    path("list/", listing.index, name="task-list"),
    path("list/export.csv", listing.export, name="task-export"),
    path("profiles/", profiles.index, name="profiles"),
    path("profiles/<str:name>/pause/", profiles.pause, name="profile-pause"),
    path("profiles/<str:name>/resume/", profiles.resume, name="profile-resume"),
    path("dispatch/nudge/", board.nudge, name="kanban-nudge"),
    path("dispatch/pause/", board.switch, {"to": "pause"}, name="dispatch-pause"),
    path("dispatch/resume/", board.switch, {"to": "resume"}, name="dispatch-resume"),
    path("sample/", board.sample, name="kanban-sample"),
    path("bulk/", moving.bulk, name="kanban-bulk"),
    path("undo/", moving.undo, name="kanban-undo"),
    path("tasks/new/", tasks.new, name="task-new"),
    path("tasks/<str:task_id>/", tasks.task, name="task"),
    path("tasks/<str:task_id>/move/", moving.move, name="task-move"),
    path("tasks/<str:task_id>/comment/", verbs.comment, name="task-comment"),
    path("tasks/<str:task_id>/link/", verbs.link, name="task-link"),
    path("tasks/<str:task_id>/unlink/", verbs.unlink, name="task-unlink"),
    path("tasks/<str:task_id>/<str:name>/", verbs.verb, name="task-verb"),
]

run_patterns = [path("<int:pk>/", runs.run, name="run")]
