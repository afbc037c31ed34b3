"""What gpu.py measures: bundles, a song, its features, the CPU's tokens, weights for PyTorch.

Everything is made once and kept in a folder: a run that was cut short goes on with the same.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Worker, talk

from mt3_runtime.errors import MT3Error

MAX_TOKENS = 1024


@dataclass(frozen=True)
class Setup:
    """Where the materials lie.

    Attributes:
        bundle: fp32, with the profile portable.
        halves: The same in 16 bits, by the name of their arithmetic.
        audio: The song.
        features: Of the song, .npy.
        truth: The CPU's tokens and log-probabilities, JSON.
        weights: For PyTorch, .npz; None without.
    """

    bundle: Path
    halves: dict[str, Path]
    audio: Path
    features: Path
    truth: Path
    weights: Path | None


def prepare(options: argparse.Namespace) -> Setup:
    """Makes what is not there yet."""
    folder = options.work
    folder.mkdir(parents=True, exist_ok=True)
    weights = _weights(options) if _incomplete(options) else None
    bundle = options.bundle or folder / "bundle"
    if not (bundle / "bundle.json").exists():
        _export(weights, bundle)
    kinds = () if options.no_half else ("fp16",) if options.rehearse else ("fp16", "bf16")
    made = Setup(
        bundle=bundle,
        halves={kind: folder / f"bundle.{kind}" for kind in kinds},
        audio=options.song or _song(options),
        features=folder / "features.npy",
        truth=folder / "truth.json",
        weights=None if options.no_torch else folder / "weights.npz",
    )
    for kind, path in list(made.halves.items()):
        if not (path / "bundle.json").exists() and not _halved(bundle, kind, path):
            del made.halves[kind]
    if made.weights and not made.weights.exists():
        _save(weights, made.weights)
    if not made.truth.exists():
        _ask_the_cpu(options, made)
    return made


def _incomplete(options: argparse.Namespace) -> bool:
    exported = (options.bundle or options.work / "bundle") / "bundle.json"
    saved = options.no_torch or (options.work / "weights.npz").exists()
    return not (exported.exists() and saved)


def _weights(options: argparse.Namespace) -> Any:
    """The checkpoint's weights; of a tiny network in a rehearsal."""
    if options.rehearse:
        import sys  # noqa: PLC0415

        sys.path.insert(0, str(ROOT))
        from tests.seeded import seeded_weights  # noqa: PLC0415  needs the path above

        return seeded_weights()
    from mt3_export.checkpoints.checkpoint import read_checkpoint  # noqa: PLC0415  the extra `export`

    talk(f"reading {options.checkpoint}")
    return read_checkpoint(options.checkpoint).weights


def _export(weights: Any, path: Path) -> None:
    from mt3_export.bundle_writer import export_bundle  # noqa: PLC0415  the extra `export`
    from mt3_export.variants import variant_named  # noqa: PLC0415

    talk(f"exporting to {path}")
    source = {"layout": "benchmark", "digest": "0" * 64}
    variant = variant_named("magenta_mt3")
    export_bundle(weights, variant, path, source=source, profiles=("cpu", "portable"))


def _halved(exact: Path, kind: str, path: Path) -> bool:
    """Makes a bundle in 16 bits; False, with the reason told, if that cannot be done here."""
    try:
        _halve(exact, kind, path)
    except (ImportError, MT3Error) as error:
        talk(f"no bundle in {kind}: {error}")
    return path.exists()


def _halve(exact: Path, kind: str, path: Path) -> None:
    """As ``mt3 calibrate --precision fp16`` and ``bf16`` do, unjudged."""
    from mt3_export.bundle_writer import new_bundle  # noqa: PLC0415
    from mt3_quantisation.forms.precision_bundle import write_graphs  # noqa: PLC0415
    from mt3_quantisation.forms.recipes import recipe_named  # noqa: PLC0415
    from mt3_quantisation.gates.exact_bundle import Source  # noqa: PLC0415
    from mt3_quantisation.gates.material import Material  # noqa: PLC0415  the extra `export`
    from mt3_runtime.bundles.bundle import Bundle  # noqa: PLC0415

    source = Source(Bundle(exact))
    product = recipe_named(kind).apply(source, Material(), talk)
    with new_bundle(path) as folder:
        write_graphs(source.manifest, product.graphs, folder, precision=product.precision)


def _save(weights: Any, path: Path) -> None:
    """Canonical weights with sizes and position table, for readers that have NumPy alone."""
    shape = weights.shape
    sizes = {
        name: getattr(shape, name)
        for name in ("heads", "head_dim", "encoder_layers", "decoder_layers")
    }
    part = path.with_suffix(".part.npz")
    np.savez(
        part,
        sizes=json.dumps(sizes),
        positions=weights.positions.table(MAX_TOKENS, shape.d_model),
        **weights.tensors,
    )
    part.replace(path)


def _song(options: argparse.Namespace) -> Path:
    if not options.rehearse:
        from materials import song  # noqa: PLC0415  needs soundfile and soxr

        return song(options.audio, options.seconds)
    path: Path = options.work / "tones.wav"
    if not path.exists():
        import soundfile  # noqa: PLC0415

        rng = np.random.default_rng(1)
        soundfile.write(path, 0.1 * rng.standard_normal(round(16000 * options.seconds)), 16000)
    return path


def _ask_the_cpu(options: argparse.Namespace, made: Setup) -> None:
    """Features of the song, and what the CPU says of them."""
    worker = Worker("gpu_side.py")
    worker.ask("load", bundle=str(made.bundle), device="cpu")
    worker.ask("features", audio=str(made.audio), out=str(made.features), segments=options.segments)
    worker.ask("take", path=str(made.features))
    answer = worker.ask("forward")
    again = worker.ask("song", audio=str(made.audio), midi=str(options.work / "cpu.mid"))
    worker.close()
    answer["song"] = again["seconds"]
    part = made.truth.with_suffix(".part")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(made.truth)
