"""A service that does one request at a time, behind a lock: what benchmarks/serve.py compares with.

python benchmarks/lock_service.py PORT [BUNDLE]
"""

from __future__ import annotations

import asyncio
import io
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mt3_runtime.loading import load_model


def main() -> None:
    """Serves until it is killed."""
    port, *bundle = sys.argv[1:]
    model = load_model(*bundle)
    model.warmup()
    lock = asyncio.Lock()

    async def transcribe(request: Request) -> Response:
        body = await request.body()
        async with lock:
            result = await asyncio.to_thread(model.transcribe_notes, io.BytesIO(body))
        midi = io.BytesIO()
        result.to_midi().save(file=midi)
        return Response(midi.getvalue(), headers={"x-mt3-token-digest": result.token_digest})

    async def ready(_request: Request) -> Response:
        return PlainTextResponse("ok")

    routes = [
        Route("/v1/transcriptions", transcribe, methods=["POST"]),
        Route("/health/ready", ready),
    ]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=int(port), log_level="error")


if __name__ == "__main__":
    main()
