"""Page views of a web application: each request counts one, and /views shows the most viewed pages.

    pycounter serve --data ./counters
    pip install starlette uvicorn
    uvicorn page_views:app --app-dir examples

PYCOUNTER_URL says where the counters are. Views are counted at the level `applied`: a page isn't held up by a disk, and
a crash of the server may lose the last second of views. Billed views want `durable`, the default.
"""

import contextlib
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import pycounter
from pycounter.errors import RpcError

PREFIX = "views:"


@contextlib.asynccontextmanager
async def counting(app: Starlette) -> AsyncIterator[None]:
    """One client for the process: the increments of all requests travel together."""
    url = os.environ.get("PYCOUNTER_URL", "pycounter://127.0.0.1:7400")
    async with pycounter.connect(url, level="applied") as app.state.counters:
        yield


async def show_page(request: Request) -> Response:
    """A page with its number of views. It is shown without one if nothing can be counted now."""
    name = request.path_params["name"]
    counters: pycounter.Client = request.app.state.counters
    try:
        views = await counters.incr(PREFIX + name, timeout_s=2.0)
    except RpcError:
        return PlainTextResponse(f"This is {name}. Its views can't be told now.")
    return PlainTextResponse(f"This is {name}, seen {views} times.")


async def show_views(request: Request) -> Response:
    """The ten most viewed pages."""
    counters: pycounter.Client = request.app.state.counters
    most = await counters.top(10, PREFIX)
    return JSONResponse({str(key).removeprefix(PREFIX): views for key, views in most})


app = Starlette(routes=[Route("/pages/{name}", show_page), Route("/views", show_views)], lifespan=counting)
