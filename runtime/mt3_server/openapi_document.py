"""The OpenAPI document of the service, written by hand: ``openapi.json`` beside this module."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any, cast


@functools.cache
def openapi_text() -> bytes:
    """The document as it is sent."""
    return resources.files("mt3_server").joinpath("openapi.json").read_bytes()


def openapi() -> dict[str, Any]:
    """The document."""
    return cast("dict[str, Any]", json.loads(openapi_text()))
