"""What the benchmarks are made of: their common options, the bundle, the song, the report."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, SHARED, STATE, check_report, talk

from mt3_runtime.commands.machine import describe, machine, versions

#: Order of the recordings in the song; the last one is cut where the song is long enough.
RECORDINGS = (
    "band_hendrix.flac",
    "band_reggae.flac",
    "guitar_loop.wav",
    "piano_bach.mp3",
    "drums_fdnb.wav",
    "drums_rock.flac",
    "drums_reggae.flac",
    "drums_80s.flac",
    "violin_solo.mp3",
)
SONG_RATE = 44100  # Hz, stereo: what music files have, so that mixing and resampling are paid for

#: Cores of other work above which a run is marked as disturbed.
QUIET = 0.25


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options all benchmarks have."""
    made = argparse.ArgumentParser(
        description=(description or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--checkpoint", type=Path, default=SHARED / "checkpoints" / "magenta_mt3")
    add("--audio", type=Path, default=SHARED / "audio", help="folder of the recordings")
    add("--bundle", type=Path, help="made from the checkpoint (fp32, profile cpu) if not given")
    add("--runs", type=int, default=3, help="rounds")
    add("--out", type=Path, help="JSON file to write; the text goes beside it as .txt")
    return made


def bundle(options: argparse.Namespace) -> Path:
    """The exact bundle to measure; exported anew if none was named, so that it is never stale."""
    return Path(options.bundle) if options.bundle else exported(options, "fp32")


def exported(options: argparse.Namespace, storage: Any) -> Path:
    """A new bundle of the checkpoint, its matrices stored as fp32 or fp16."""
    from mt3_export.bundle_writer import export_bundle  # noqa: PLC0415  the extra `export`
    from mt3_export.checkpoints.checkpoint import read_checkpoint  # noqa: PLC0415
    from mt3_export.variants import variant_named  # noqa: PLC0415

    made = STATE / f"magenta_mt3.{storage}.bundle"
    talk(f"exporting {options.checkpoint}, stored as {storage}")
    contents = read_checkpoint(options.checkpoint)
    source = {"layout": contents.layout, "digest": contents.digest}
    variant = variant_named(contents.variant)
    export_bundle(contents.weights, variant, made, source=source, storage=storage)
    return made


def torch_checkpoint(options: argparse.Namespace) -> Path:
    """The same weights in the layout of the PyTorch port: a folder with config.json and mt3.pth."""
    made = STATE / "magenta_mt3.torch"
    if not (made / "mt3.pth").exists():
        sys.path.insert(0, str(ROOT))
        from mt3_export.checkpoints.checkpoint import read_checkpoint  # noqa: PLC0415  the extra `export`
        from tests.export.writers import write_kunato  # noqa: PLC0415  needs the path above

        talk(f"converting {options.checkpoint}")
        write_kunato(made, read_checkpoint(options.checkpoint).weights)
    return made


def song(folder: Path, seconds: float) -> Path:
    """The recordings joined, from the first again if need be, as 16-bit stereo WAV."""
    path = STATE / f"song_{seconds:g}s.wav"
    if path.exists():
        return path
    import soundfile  # noqa: PLC0415  other materials do without it

    path.parent.mkdir(parents=True, exist_ok=True)
    part, wanted = path.with_suffix(".part"), round(seconds * SONG_RATE)
    with soundfile.SoundFile(part, "w", SONG_RATE, 2, "PCM_16", format="WAV") as file:
        for samples in _recordings(folder):
            file.write(samples[: wanted - file.frames])
            if file.frames >= wanted:
                break
    part.replace(path)
    return path


def _recordings(folder: Path) -> Iterator[Any]:
    """The recordings over and over, each float32 [n, 2] at `SONG_RATE`."""
    import soundfile  # noqa: PLC0415
    import soxr  # noqa: PLC0415

    while True:
        for name in RECORDINGS:
            samples, rate = soundfile.read(folder / name, dtype="float32", always_2d=True)
            stereo = np.ascontiguousarray(np.broadcast_to(samples, (len(samples), 2)))
            yield soxr.resample(stereo, rate, SONG_RATE, "HQ")


@contextmanager
def report(options: argparse.Namespace, **facts: Any) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yields (result, lines) to fill; prints the lines and writes both if asked to."""
    if options.out:
        check_report(options.out)
    result: dict[str, Any] = {"machine": machine(), **facts}
    result["versions"] = versions(["mt3-runtime", "onnxruntime", "numpy", "soundfile", "soxr"])
    installed = ", ".join(f"{name} {found}" for name, found in result["versions"].items())
    result["load_before"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    result["busy_before"] = busy = busy_cores()
    lines = [describe(result["machine"]), installed, f"cores busy with other work: {busy:.1f}"]
    if busy > QUIET:
        lines.append("NOT QUIET: beside other work PyTorch's barriers slow it down up to 60 times")
    lines.append("")
    yield result, lines
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def busy_cores(seconds: float = 2.0) -> float:
    """Cores that other work takes while this process sleeps; 0 where that is not told."""
    readings = []
    for pause in (0.0, seconds):
        time.sleep(pause)
        try:
            first = Path("/proc/stat").read_text("ascii").partition("\n")[0]
        except OSError:
            return 0.0
        user, nice, system, idle, wait, *others = map(int, first.split()[1:9])
        readings.append((user + nice + system + sum(others), idle + wait))
    busy, idle = (after - before for before, after in zip(*readings, strict=True))
    return busy / max(busy + idle, 1) * (os.cpu_count() or 1)
