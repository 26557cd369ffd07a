"""The application: routes, layers around them, start and stop. `create_app` is all that `serve` and the tests need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

import moss_audio
from moss_audio.errors import MossAudioError
from moss_audio.server import batches, chat, realtime, task_routes, transcripts
from moss_audio.server.body import BodyLimits
from moss_audio.server.examples import add_examples
from moss_audio.server.gate import Gate
from moss_audio.server.keys import ApiKeys
from moss_audio.server.observing import Observer
from moss_audio.server.refusals import Refusal, error_body, is_full, refusal
from moss_audio.server.schemas import ErrorReply, Health, ModelCard, ModelList
from moss_audio.server.service import Service, service_of
from moss_audio.server.settings import Settings
from moss_audio.server.store import Store

if TYPE_CHECKING:
    from moss_audio.inference.engine import MossAudio

STATIC = Path(__file__).parent / "static"

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in {
        400: "a value that is not valid, or one over a limit", 401: "no valid API key", 403: "not allowed here",
        404: "no such thing", 408: "the body came too slowly", 413: "too many bytes or seconds",
        415: "not a recording", 422: "a damaged recording", 429: "too many requests: see Retry-After",
        503: "too busy, or stopping: see Retry-After",
    }.items()
}  # fmt: skip

HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 400: "invalid_body", 415: "unsupported_media_type"}


def create_app(
    settings: Settings | None = None, model: MossAudio | None = None, *, name: str = "mini", keys: ApiKeys | None = None
) -> FastAPI:
    """The server of one model, by default the embedded one. Raises `SettingsError` where it would be open to anybody.

    `keys` are those that may ask; `ApiKeys.read` has them from a file. `name` is what clients call the model.
    """
    settings, keys = settings or Settings(), keys or ApiKeys()
    settings.check_exposed(bool(keys.digests))
    service = Service(settings, model or moss_audio.load(name), name)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        runner = asyncio.create_task(batches.Runner(service, app.state.store).run())
        try:
            yield
        finally:
            await asyncio.shield(service.stop())
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)
            app.state.store.close()

    app = FastAPI(
        title="MOSS-Audio",
        version=moss_audio.__version__,
        description="Hears speech, music and sounds, and answers in text. OpenAI's clients work with it as they are.",
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        responses=REFUSALS,
    )
    app.state.service, app.state.store = service, Store(settings)
    app.state.live = realtime.LiveSessions(service)
    for module in (chat, transcripts, task_routes, realtime, batches):
        app.include_router(module.router)
    _add_common(app)
    _add_refusals(app)
    plain = app.openapi
    app.openapi = lambda: add_examples(plain())  # type: ignore[method-assign]
    app.add_middleware(BodyLimits, settings=settings)
    app.add_middleware(Gate, settings=settings, keys=keys)
    app.add_middleware(Observer, metrics=service.metrics)
    if settings.cors_origins:  # outermost, so that a page elsewhere can read refusals too
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"], expose_headers=["X-Request-ID", "Retry-After"],
        )  # fmt: skip
    return app


def _add_common(app: FastAPI) -> None:
    @app.get("/health", summary="The process lives", responses={})
    async def health(request: Request) -> Health:
        return Health(status="ok")

    @app.get("/ready", response_model=Health, summary="Requests are taken")
    async def ready(request: Request) -> Response:
        state = service_of(request).state
        return JSONResponse({"status": state}, 200 if state == "ok" else 503)

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
    async def metrics(request: Request) -> Response:
        return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", summary="What can be asked")
    async def models(request: Request) -> ModelList:
        return ModelList(data=[_card(service_of(request))])

    @app.get("/v1/models/{model:path}", summary="One model")
    async def model(request: Request, model: str) -> ModelCard:
        service_of(request).check_model(model)
        return _card(service_of(request))

    if (STATIC / "index.html").is_file():

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

        app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _card(service: Service) -> ModelCard:
    return ModelCard(id=service.name, created=service.created)


def _add_refusals(app: FastAPI) -> None:
    """Everything that can go wrong takes the one error shape; what is not listed here does so in `Observer`."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"] if step not in ("body", "query"))[:200]
        message = f"{where or 'the body'}: {first['msg']}"[:500]
        return _refused(request, 400, error_body(400, "invalid_value", message, where or None))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        cause = error.__cause__  # FastAPI calls all that goes wrong with a form a bad request
        if isinstance(cause, Exception) and is_full(cause):
            error = refusal(cause)
        if isinstance(error, Refusal):
            return _refused(request, error.status_code, error.to_dict(), error.headers)
        code = HTTP_CODES.get(error.status_code, "invalid_request")
        body = error_body(error.status_code, code, str(error.detail))
        return _refused(request, error.status_code, body, error.headers)

    @app.exception_handler(MossAudioError)
    async def package(request: Request, error: MossAudioError) -> Response:
        answer = refusal(error)
        return _refused(request, answer.status_code, answer.to_dict(), answer.headers)


def _refused(request: Request, status: int, body: dict[str, Any], headers: Any = None) -> Response:
    request.scope["refused"] = body["error"]["code"]
    return JSONResponse(body, status, dict(headers or {}))
