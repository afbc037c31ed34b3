"""The fingerprint of a batch: everything that decides what its results are.

Contract: two runs with equal options give equal results for equal sources.  Devices, threads and
graph profiles are not among them: results do not depend on those.  Formats and stems are not
either; they say what is written of a result, and a journal has them beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.extensions.auto_lineup import is_auto
from mt3_runtime.extensions.evidence import evidence_source
from mt3_runtime.imports.lazy import version
from mt3_runtime.notes.instruments import choose


def options_of(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What decides the results of a run of `mt3 transcribe`, as JSON values by name.

    Args:
        model: The bundle.
        args: The arguments of the command.

    Raises:
        BundleError: It is none.
        OptionError: An instrument is not known.
    """
    manifest = Bundle(model).manifest
    auto = is_auto(args.instruments)
    lineup = choose(None if auto else args.instruments, args.exclude)
    judged = {"evidence": evidence_source().identity()} if auto else {}
    return {
        **judged,
        "runtime": _version(),
        "model": manifest.name,
        "export": manifest.export_id,
        "precision": {k: v for k, v in asdict(manifest.precision).items() if isinstance(v, str)},
        "decoding": args.decoding,
        "programs": sorted(lineup.programs) if lineup else None,
        "drum_keys": sorted(lineup.drum_keys) if lineup else None,
        "grammar": args.grammar,
        "auto_filter": args.auto_filter,
        "smooth": args.smooth,
        "min_confidence": args.min_confidence,
        "upstream_quirks": args.upstream_quirks,
        "tempo": args.tempo,
    }


def digest(options: Mapping[str, Any]) -> str:
    """The first 64 bits of the SHA-256 of some options, in hexadecimal."""
    text = json.dumps(options, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def _version() -> str:
    try:
        return version()
    except PackageNotFoundError:  # run from the source tree
        return ""
