"""The application: every route of the server, joined."""

from __future__ import annotations

from fastapi import FastAPI

from softlore.serve import kobold, openai, studio
from softlore.serve.state import ServerState


def make_app(state: ServerState) -> FastAPI:
    """An ASGI application that serves one state."""
    app = FastAPI(title="softlore")
    app.state.softlore = state
    for part in (kobold, openai, studio):
        app.include_router(part.make_router(state))
    return app
