"""Installs a trained model in the package as the default model.

Contract: `ship` writes what `mt3_runtime.models.shipped` reads, the bundle and the list of its
files with their SHA-256, or leaves everything as it was.  Equal runs give equal bytes.

    python -m mt3_training.shipping.ship RUN [--confidence FILE]

The bundle has one profile, ``cpu``: every profile holds all weights, and what a wheel brings to
everybody must be small (`LIMIT`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import guarded
from mt3_runtime.errors import MT3Error, OutputError
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_runtime.filesystem.folders import folder_beside, move_folder
from mt3_runtime.filesystem.ownership import is_regular
from mt3_runtime.models import shipped
from mt3_training.runs.checkpointing import RunFolder

if TYPE_CHECKING:
    from mt3_runtime.notes.confidence import Calibration
    from mt3_training.shipping.trained import Which

LIMIT = 20_000_000
"""Bytes of the bundle, at most."""


def ship(
    run: RunFolder,
    folder: Path | None = None,
    *,
    which: Which = "best",
    confidence: Calibration | None = None,
) -> Path:
    """Writes the bundle and the list of its files.

    Args:
        run: The folder of the training.
        folder: Where packages keep their data; by default this one's.
        which: Weights, see `export_run`.
        confidence: See `export_run`.

    Returns:
        The bundle.

    Raises:
        CheckpointError: The run has no weights yet.
        OutputError: The bundle would be too large, cannot be written, or something else is in its
            place.
    """
    from mt3_export.bundle_writer import check_target, replaceable_files  # noqa: PLC0415  onnx
    from mt3_training.shipping.trained import export_run  # noqa: PLC0415  onnx

    folder = folder or shipped.FOLDER
    target, listing = folder / shipped.DEFAULT, folder / f"{shipped.DEFAULT}.files.json"
    check_target(target)
    _check_listing(listing)
    with folder_beside(target) as new:
        manifest = export_run(run, new, which=which, name=shipped.DEFAULT, confidence=confidence)
        files = [*sorted(graph.file for graph in manifest.graphs), "bundle.json"]
        rows = [_row(new / name) for name in files]
        size = sum(int(row["size"]) for row in rows)
        if size > LIMIT:
            raise OutputError(f"The bundle has {size} bytes, and {LIMIT} are the most to ship.")
        move_folder(new, target, replaceable=replaceable_files)
    write_atomic(listing, f"{json.dumps({'files': rows}, indent=1)}\n".encode())
    for graph in manifest.graphs:
        Bundle(target).verified(graph)
    return target


def _check_listing(path: Path) -> None:
    """Refuses to replace what is no list of files."""
    if not os.path.lexists(path):
        return
    try:
        rows = json.loads(path.read_bytes())["files"]
        ours = all(row.keys() == {"path", "size", "sha256"} for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ours = False
    if not ours or not is_regular(path):
        raise OutputError(f"{path} is no list of a bundle's files; move it elsewhere first.")


def _row(path: Path) -> dict[str, str | int]:
    data = path.read_bytes()
    return {"path": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def main(arguments: list[str] | None = None) -> int:
    """Ships the run that the command line names."""
    parser = argparse.ArgumentParser(description="put a trained model into the package")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--state", choices=("best", "last"), default="best")
    parser.add_argument("--confidence", metavar="FILE", help="fit of mt3 evaluate --confidence")
    parser.add_argument("--into", metavar="DIR", type=Path, help="default: the package's data")
    args = parser.parse_args(arguments)
    from mt3_training.shipping.trained import read_confidence  # noqa: PLC0415  onnx

    try:
        fit = read_confidence(args.confidence) if args.confidence else None
        run = RunFolder.existing(args.run)
        print(ship(run, args.into, which=args.state, confidence=fit))  # noqa: T201
    except MT3Error as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
