"""REST of this app: what runs, and the loops."""

from services.api.loops import router as loops_router
from services.api.processes import router

__all__ = ["loops_router", "router"]
