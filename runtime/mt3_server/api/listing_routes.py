"""What there is: models, instruments, formats, versions, the OpenAPI document, health, metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mt3_runtime.files.formats import FORMATS
from mt3_runtime.imports.extras import DISTRIBUTION
from mt3_runtime.imports.lazy import version
from mt3_runtime.notes.instruments import FAMILIES, PROGRAM_NAMES, PROGRAMS_PER_FAMILY
from mt3_runtime.notes.stems import STEMS
from mt3_server.api.request_work import service_of
from mt3_server.openapi_document import openapi_text
from mt3_server.service import facts_of


async def list_models(request: Request) -> Response:
    """The models that may be asked for."""
    service = service_of(request)
    return JSONResponse({
        "default": service.default,
        "models": [
            {
                "name": name,
                "model": keeper.model.info.name,
                "export_id": keeper.model.info.export_id,
                "sample_rate": keeper.model.sample_rate,
                "segment_seconds": keeper.model.info.segments.samples / keeper.model.sample_rate,
                "device": keeper.model.device,
            }
            for name, keeper in service.keepers.items()
        ],
    })  # fmt: skip


async def list_instruments(_request: Request) -> Response:
    """The instruments that may be named, and the stems they belong to."""
    programs = [
        {"program": number, "name": name, "family": FAMILIES[number // PROGRAMS_PER_FAMILY]}
        for number, name in enumerate(PROGRAM_NAMES)
    ]
    stems = [{"name": stem.name, "role": stem.role.value} for stem in STEMS]
    return JSONResponse(
        {"instruments": [*programs, {"program": None, "name": "drums", "family": "Drums"}],
         "families": [*FAMILIES, "Drums"], "stems": stems, "formats": list(FORMATS)}
    )  # fmt: skip


async def show_version(_request: Request) -> Response:
    """The version of this installation."""
    return JSONResponse({"name": DISTRIBUTION, "version": version()})


async def show_openapi(_request: Request) -> Response:
    """The OpenAPI document."""
    return Response(openapi_text(), media_type="application/json")


async def live(request: Request) -> Response:
    """Whether it makes sense to wait for this process: 200, or 503 if it should be replaced."""
    alive = service_of(request).alive
    return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)


async def ready(request: Request) -> Response:
    """Whether recordings are taken: 200, or 503 while starting, ending or after a failure."""
    service = service_of(request)
    body: dict[str, Any] = {"status": "ok" if service.ready else "not ready"}
    body["models"] = {name: facts_of(health) for name, health in service.health().items()}
    if service.ready:
        return JSONResponse(body)
    return JSONResponse(body, 503, {"retry-after": "5"})


async def metrics(request: Request) -> Response:
    """The metrics for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
