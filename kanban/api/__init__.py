"""REST of this app (mounted at /api/kanban, and under /api/plugins/kanban); of the clean-up, at /api/system."""

from ninja import Router

from kanban.api.board import router as board_router
from kanban.api.cleaning import router as system_router
from kanban.api.subscriptions import router as subscriptions_router
from kanban.api.tasks import router as tasks_router
from kanban.api.verbs import router as verbs_router

router = Router(tags=["kanban"])
router.add_router("/subscriptions", subscriptions_router)
router.add_router("", board_router)
router.add_router("", tasks_router)
router.add_router("", verbs_router)

__all__ = ["router", "system_router"]
