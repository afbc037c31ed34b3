"""The page: static files at ``/``, if the package has them, under a strict content policy."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDERS = (Path(__file__).parents[1] / "page", Path(__file__).parents[2] / "web")
"""Where the package has the page, and where a checkout has it."""

POLICY = (
    "default-src 'none'; "
    "script-src 'self' 'wasm-unsafe-eval'; "  # ONNX Runtime in the browser is WebAssembly
    "style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self'; "
    "worker-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""What the page may load: its own files, and nothing of others."""


class PageFiles(StaticFiles):
    """Static files with the policy of `POLICY`."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file of a path; whatever else is asked of a path without one is not found either."""
        if scope["method"] not in ("GET", "HEAD") and self.lookup_path(path)[1] is None:
            raise HTTPException(404)
        return await super().get_response(path, scope)

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """The file of a path, None where none can be: with a NUL, or of 4 kB."""
        try:
            return super().lookup_path(path)
        except (ValueError, OSError):
            return "", None

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """One file, with the headers of all."""
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["content-security-policy"] = POLICY
        response.headers["cross-origin-opener-policy"] = "same-origin"
        response.headers["cross-origin-embedder-policy"] = "require-corp"
        response.headers["cache-control"] = "no-cache"
        return response


def page_routes(folder: Path | None = None) -> list[BaseRoute]:
    """The route of the page; none where there is none.

    Args:
        folder: Of its files; the package's own if None.
    """
    for place in (folder,) if folder else FOLDERS:
        if (place / "index.html").is_file():
            files = PageFiles(directory=place, html=True, follow_symlink=False)
            return [Mount("/", files, name="page")]
    return []
