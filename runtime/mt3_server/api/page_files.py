"""The page: static files at ``/``, if the package has them, under a strict content policy."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

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
