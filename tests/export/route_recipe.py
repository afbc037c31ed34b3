"""Exports a checkpoint by one route, in whichever Python has what the route needs.

Usage: python route_recipe.py ROUTE CHECKPOINT BUNDLE [PROFILE].  mt3-runtime need not be installed.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(route: str, checkpoint: str, bundle: str, profile: str = "compat") -> None:
    installed = importlib.metadata.version
    importlib.metadata.version = lambda name: "0" if name == "mt3-runtime" else installed(name)
    sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "export")]
    from mt3_export.bundle_writer import export_bundle
    from mt3_export.checkpoints.checkpoint import read_checkpoint
    from mt3_export.variants import variant_named

    contents = read_checkpoint(checkpoint)
    export_bundle(
        contents.weights,
        variant_named(contents.variant),
        bundle,
        source={"layout": contents.layout, "digest": contents.digest},
        profiles=(profile,),
        route=route,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
