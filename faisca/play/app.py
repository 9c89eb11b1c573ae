"""The page and what it asks: one answer with the facts of the run, and streams of JSON, an event a line."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from faisca.errors import FaiscaError
from faisca.loaded_model import LONGEST_ANSWER, LoadedModel
from faisca.play.alternatives import alternatives
from faisca.play.asks import MOST_NEW_TOKENS, MOST_ROWS, Ask, Settings, parse_request
from faisca.play.stages import Place, Stage
from faisca.play.worker import END, Job, Worker
from faisca.play.writing import write
from faisca.report.tokens import LEVELS
from faisca.text import json_text

LARGEST_BODY, SLOWEST_BODY = 256_000, 10
"""bytes of a request, and seconds in which it has to come"""
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
Event = dict[str, Any]
Work = Callable[[LoadedModel, Ask, Settings], Iterator[Event]]


class Play:
    """The routes of the page."""

    def __init__(self, name: str, stages: Sequence[Stage], places: Sequence[Place], workers: Sequence[Worker]) -> None:
        self.name, self.stages, self.places = name, stages, places
        self._workers = {worker.name: worker for worker in workers}
        self._folders = {stage.name: stage.folder for stage in stages}
        self._files = _assets()

    def app(self) -> Starlette:
        """The application, without the guard that stands before it."""
        routes = [
            Route("/", self._page),
            Route("/assets/{name}", self._asset),
            Route("/run", self._run),
            Route("/write", self._write, methods=["POST"]),
            Route("/alternatives", self._alternatives, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={FaiscaError: _bad_request})

    async def _page(self, request: Request) -> Response:
        return self._file("index.html")

    async def _asset(self, request: Request) -> Response:
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        if name not in self._files:
            raise HTTPException(404, f"{name!a} is no part of the page")
        return Response(self._files[name], media_type=KINDS["." + name.rpartition(".")[2]])

    async def _run(self, request: Request) -> Response:
        """What the page shows before anything is written."""
        sample = self.stages[-1].state.config.sample
        return JSONResponse(
            {
                "name": self.name,
                "stages": [
                    {"name": one.name, "title": one.title, "checkpoint": one.folder.name, "chats": one.chats}
                    for one in self.stages
                ],
                "backends": [vars(place) for place in self.places],
                "settings": {
                    **{name: getattr(sample, name) for name in ("temperature", "top_k", "top_p")},
                    "rows": min(sample.count, MOST_ROWS),
                    "max_new_tokens": min(sample.max_new_tokens, MOST_NEW_TOKENS),
                },
                "prompt": sample.prompt,
                "longest_answer": LONGEST_ANSWER,
                "most": {"rows": MOST_ROWS, "max_new_tokens": MOST_NEW_TOKENS},
                "levels": LEVELS,
            }
        )

    async def _write(self, request: Request) -> Response:
        return await self._stream(request, write)

    async def _alternatives(self, request: Request) -> Response:
        return await self._stream(request, alternatives)

    async def _stream(self, request: Request, work: Work) -> Response:
        """Let the workers do what is asked for, and pass on what they say, of all columns in one stream."""
        asks, settings = parse_request(await _body(request))
        workers = [self._worker(ask.column) for ask in asks]
        said: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def job(ask: Ask) -> Job:
            def post(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                    loop.call_soon_threadsafe(said.put_nowait, {"column": ask.column, **event})

            return Job(self._folders[ask.column.split("/")[0]], lambda model: work(model, ask, settings), post)

        jobs = [job(ask) for ask in asks]
        return StreamingResponse(_lines(jobs, workers, said), media_type="application/x-ndjson")

    def _worker(self, column: str) -> Worker:
        stage, _, backend = column.partition("/")
        if stage not in self._folders or backend not in self._workers:
            problems = [place.problem for place in self.places if place.name == backend and place.problem]
            raise FaiscaError(*problems or [f"column {ascii(column)[:40]} is not there: reload the page"])
        return self._workers[backend]


async def _lines(jobs: list[Job], workers: list[Worker], said: asyncio.Queue[Event]) -> AsyncIterator[bytes]:
    """The events as lines of JSON; whoever closes the stream, a page that is left for one, ends the jobs."""
    running = len(jobs)
    try:
        for job, worker in zip(jobs, workers, strict=True):
            worker.submit(job)
        while running:
            events = [await said.get()]
            while not said.empty():
                events.append(said.get_nowait())
            running -= sum(event["event"] == END for event in events)
            yield b"".join(json_text(event).encode() + b"\n" for event in events)
    finally:
        for job in jobs:
            job.cancelled.set()


async def _body(request: Request) -> bytes:
    """The request's JSON; whoever sends another kind is no page of ours, for a browser would have asked first."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send application/json")
    body = b""
    try:
        async with asyncio.timeout(SLOWEST_BODY):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_BODY:
                    raise HTTPException(413, f"the request is longer than {LARGEST_BODY:,} bytes: shorten the text")
    except TimeoutError as error:
        raise HTTPException(408, f"the request took longer than {SLOWEST_BODY} seconds: send it again") from error
    return body


async def _bad_request(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", status_code=400)


def _assets() -> dict[str, bytes]:
    """The page's files by name; its style begins with the report's."""
    found = {Path(one.name).name: one.read_bytes() for one in (files("faisca.play") / "assets").iterdir()}
    style = (files("faisca.report") / "assets" / "page.css").read_bytes()
    return {**found, "report.css": style}
