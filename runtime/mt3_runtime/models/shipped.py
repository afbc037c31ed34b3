"""The default model that ships inside the package.

Contract: `shipped_models` are bundles in the package's own folder.  They have the lowest rank: a
bundle of the same name in the cache folder stands in for them, and they are used unasked only where
nothing is installed.  A package that was built without weights has none, and says so like one
without any model.

    data/default/             the bundle
    data/default.files.json   name, size and SHA-256 of its files, for the catalogue

`python -m mt3_training.shipping.ship RUN` writes both.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

#: The model's name.
DEFAULT = "default"
#: The package's own folder; in a package that is imported from a zip file it does not exist.
FOLDER = Path(str(resources.files("mt3_runtime"))) / "data"
#: What a bundle folder holds.
_MANIFEST = "bundle.json"


def shipped_models() -> dict[str, Path]:
    """The bundles inside the package, by name."""
    path = FOLDER / DEFAULT
    return {DEFAULT: path} if (path / _MANIFEST).is_file() else {}


def listing(name: str) -> Path:
    """The file that describes a shipped bundle's files."""
    return FOLDER / f"{name}.files.json"
