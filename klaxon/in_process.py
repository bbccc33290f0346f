"""A read API asked without a port: the same requests and answers as over HTTP, handed to the app in this process."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI


class InProcess(httpx.BaseTransport):
    """The transport of an httpx.Client that talks to `app`; one request at a time."""

    def __init__(self, app: FastAPI) -> None:
        self._app = httpx.ASGITransport(app=app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Ask, and wait for the whole answer."""
        return asyncio.run(self._ask(request))

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        answer = await self._app.handle_async_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())


def client_of(app: FastAPI) -> httpx.Client:
    """A client of an app in this process."""
    return httpx.Client(transport=InProcess(app), base_url="http://klaxon.in-process")
