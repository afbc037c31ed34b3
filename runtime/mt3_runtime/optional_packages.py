"""Import optional packages, or say which extra brings them.

Contract: :func:`require` is called where a package is first needed, so that nobody pays for, or has
to install, what is not used.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from mt3_runtime.errors import MissingDependencyError


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: Import name, here also the name on PyPI.
        purpose: What it is needed for, as the object of "is needed to ...".

    Raises:
        MissingDependencyError: The package, or the C library below it, is not installed.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"{module} is needed to {purpose} and cannot be imported ({error}). "
            'Install it with: pip install "mt3-runtime[cpu]"'
        ) from error
