"""Scores several models on every test set and writes one table of them.

Contract: `measure_models` transcribes the test sets with each model, as a user would with defaults
on a CPU, and scores the notes.  Two boards can be put together if their sets have equal digests.

    python -m mt3_evaluation.scoreboards.scoreboard default magenta_mt3 --json board.json --markdown
    board.md

===========  =======================================================================================
e1, choice   made up, with the sounds of the training; with `gmbank`
e2, e3       made up, with a soundfont no model of ours has heard; with recorded notes
e4           a recording of a violin, the only one with programs
e5           recordings of drums and of bands, of which only the drums are labelled
e6           a recording of a piano, labelled by another model
===========  =======================================================================================

All but the first two are for the end: whoever looks at them during development and then changes
something has used them up.  So they are scored only when that is confirmed (``--final``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3_evaluation.evaluation import Estimate, Evaluation, Findings, Recording, Result, score
from mt3_evaluation.labels import find_labels, read_labels
from mt3_evaluation.metrics import found_by_family
from mt3_evaluation.plots import check_picture, to_bytes
from mt3_evaluation.scoreboards import scoreboard_report
from mt3_evaluation.scoreboards.testsets import COUNT, SECONDS, cached_test_set, set_named, sha256
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import guarded
from mt3_runtime.errors import MT3Error, OptionError
from mt3_runtime.filesystem.atomic import check_output, write_output
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.models.installed import resolve_model
from mt3_runtime.notes.instruments import FAMILIES
from mt3_runtime.progress import Meter
from mt3_synthesis.soundfonts import Role, source_named

SYNTHETIC = ("e1", "choice", "e2", "e3")

RECORDED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "e4": {"violin": ("violin_solo.mp3",)},
    "e5": {
        "drums": ("drums_80s.flac", "drums_reggae.flac", "drums_rock.flac"),
        "bands": ("band_hendrix.flac", "band_reggae.flac"),
    },
    "e6": {"piano": ("piano_bach.mp3",)},
}
"""Recordings in the folder of ``--recordings``, by set and kind."""

UNSEEN = ("e2", "e3")
"""Sets with true programs and with sounds that no model of ours has heard; how well a model tells
instruments is shown for these, by family."""

METRICS = ("onset", "offset", "drums", "class", "right")
"""What is reported, of `mt3_evaluation.metrics`."""

ALL = "all"
"""The kind that stands for a whole set."""


@dataclass(frozen=True)
class Member:
    """A recording of a set."""

    kind: str
    recording: Recording


@dataclass(frozen=True)
class Board:
    """A test set, ready to be scored.

    Attributes:
        name: Of the set.
        sounds: What one hears.
        digest: Equal for equal sets.
        members: Its recordings.
    """

    name: str
    sounds: str
    digest: str
    members: tuple[Member, ...]


def is_final(name: str) -> bool:
    """Whether a set is kept for the end."""
    if name in RECORDED:
        return True
    return any(source_named(s).role is Role.TEST for s in set_named(name).sources)


def open_set(
    name: str, *, count: int = COUNT, seconds: float = SECONDS, recordings: Path | None = None
) -> Board:
    """A set with its labels.

    Args:
        name: One of `SYNTHETIC` or `RECORDED`.
        count: Recordings of a synthetic set.
        seconds: Length of each of those.
        recordings: Folder of the recorded ones.

    Raises:
        OptionError: There is no such set, or no such recording.
        MissingDependencyError: The sounds are not installed.
    """
    if name not in RECORDED:
        spec = set_named(name)
        made = cached_test_set(spec, count=count, seconds=seconds)
        kinds = [spec.kind(number) for number in range(len(made.recordings))]
        pairs = list(zip(kinds, made.recordings, strict=True))
        return Board(name, " + ".join(spec.sources), made.digest, _members(pairs))
    if recordings is None:
        raise OptionError(f"{name} needs --recordings DIR, or the variable MT3_SHARED.")
    pairs = [(kind, recordings / file) for kind, names in RECORDED[name].items() for file in names]
    members = _members(pairs)
    files = sorted({p for _, path in pairs for p in (path, *find_labels(path.stem, recordings))})
    sounds = " and ".join(RECORDED[name])
    return Board(
        name,
        f"recorded {sounds}",
        hashlib.sha256("\n".join(map(sha256, files)).encode()).hexdigest(),
        members,
    )


def _members(pairs: Sequence[tuple[str, Path]]) -> tuple[Member, ...]:
    members = []
    for kind, path in pairs:
        files = find_labels(path.stem, path.parent)
        if not files or not path.is_file():
            raise OptionError(f"{path} or its labels are not there; leave its set out of --sets.")
        members.append(Member(kind, Recording(path.stem, read_labels(files), path)))
    return tuple(members)


def measure_models(
    models: Sequence[str], boards: Sequence[Board], *, threads: int | None = None
) -> dict[str, Any]:
    """Transcribes and scores.

    Args:
        models: Names or paths of bundles.
        boards: The sets.
        threads: Of the CPU; by default all cores.

    Returns:
        A document, see `mt3_evaluation.scoreboards.scoreboard_report`.

    Raises:
        BundleNotFoundError: There is no such model.
    """
    about: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for name in models:
        bundle = Bundle(resolve_model(name))
        label, manifest = _label(bundle, about), bundle.manifest
        about.append(
            {
                "label": label,
                "variant": manifest.variant,
                "export_id": manifest.export_id,
                "precision": manifest.precision.name,
                "bytes": sum(graph.size for graph in manifest.graphs if graph.profile == "cpu"),
            }
        )
        with load_model(bundle.path, device="cpu", threads=threads) as model:
            for board in boards:
                rows += _rows(label, board, [_score(model, member) for member in board.members])
    return scoreboard_report.document(about, [_set(board) for board in boards], rows)


def _score(model: Model, member: Member) -> tuple[str, Result]:
    """What a model finds in a recording, scored; with the kind of music."""
    with Meter(f"{model.info.name} {member.recording.name}", unit="s") as meter:
        found = model.transcribe_notes(
            str(member.recording.audio),
            progress=lambda now: meter.update(now.seconds_done, now.seconds_total),
        )
    findings = Findings(found.notes, found.duration, found.token_digest)
    return member.kind, score(member.recording, findings)


def _label(bundle: Bundle, before: Sequence[Mapping[str, Any]]) -> str:
    """The model's name, or that of its folder where another one has the same."""
    name = bundle.manifest.name
    return bundle.path.stem if name in {item["label"] for item in before} else name


def _set(board: Board) -> dict[str, Any]:
    return {
        "name": board.name,
        "sounds": board.sounds,
        "digest": board.digest,
        "recordings": len(board.members),
        "kinds": list(dict.fromkeys(member.kind for member in board.members)),
    }


def _rows(
    label: str, board: Board, results: Sequence[tuple[str, Result]]
) -> Iterator[dict[str, Any]]:
    """Scores of a set and of its kinds."""
    kinds = list(dict.fromkeys(kind for kind, _ in results))
    for kind in [ALL, *(kinds if len(kinds) > 1 else [])]:
        chosen = tuple(result for own, result in results if kind in (ALL, own))
        evaluation = Evaluation(chosen)
        families = _families(chosen) if board.name in UNSEEN and kind == ALL else None
        yield {
            "set": board.name,
            "kind": kind,
            "model": label,
            "seconds": round(sum(result.findings.seconds or 0.0 for result in chosen), 1),
            "labels": sum(len(result.recording.labels.notes) for result in chosen),
            "notes": sum(result.note_count for result in chosen),
            "metrics": {name: _estimate(evaluation.pooled(name)) for name in METRICS},
            **({"families": families} if families else {}),
        }


def _families(results: Sequence[Result]) -> dict[str, list[int]]:
    """Labels, found ones, and those found on the right family, by the family's name."""
    found = [found_by_family(r.recording.labels, r.findings.notes) for r in results]
    none = np.zeros(3, np.int64)
    whole = {
        name: sum((one.get(i, none) for one in found), start=none)
        for i, name in enumerate(FAMILIES)
    }
    return {name: counts.tolist() for name, counts in whole.items() if counts.any()}


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    low, high = estimate.interval or (None, None)
    values = {"value": estimate.value, "low": low, "high": high}
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the command line names, and writes the board."""
    args = _parser().parse_args(arguments)
    try:
        _run(args)
    except MT3Error as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="score models on all test sets")
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="bundles, or names of models")
    add("--sets", metavar="LIST", help="of e1, choice, e2, e3, e4, e5, e6 (default: e1,choice, and "
        "all with --final)")  # fmt: skip
    add("--final", action="store_true", help="yes, use up the sets that are kept for the end")
    add("--count", type=int, default=COUNT, metavar="N", help=f"recordings a set ({COUNT})")
    add("--seconds", type=float, default=SECONDS, metavar="S", help=f"length of each ({SECONDS})")
    add("--recordings", type=Path, metavar="DIR", help="of e4 to e6 (default: $MT3_SHARED/audio)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    add("--beside", action="append", default=[], metavar="FILE", help="earlier boards to add")
    add("--json", metavar="FILE", help="write everything")
    add("--markdown", metavar="FILE", help="write the tables (default: to stdout)")
    add("--plot", metavar="FILE", help="write a chart (.png, .svg or .pdf)")
    return parser


def _run(args: argparse.Namespace) -> None:
    names = _names(args)
    for path in filter(None, (args.json, args.markdown, args.plot)):
        check_output(path)
    kind = check_picture(args.plot) if args.plot else ""
    boards = [
        open_set(name, count=args.count, seconds=args.seconds, recordings=_recordings(args))
        for name in (names if args.models else ())
    ]
    earlier = [scoreboard_report.read(path) for path in args.beside]
    parts = [measure_models(args.models, boards, threads=args.threads)] if args.models else []
    whole = scoreboard_report.merged([*parts, *earlier])
    if args.json:
        write_output(args.json, (json.dumps(whole, indent=1) + "\n").encode())
    if args.plot:
        write_output(args.plot, to_bytes(scoreboard_report.chart(whole), kind))
    text = scoreboard_report.markdown(whole)
    if args.markdown:
        write_output(args.markdown, text.encode())
    else:
        print(text, end="")  # noqa: T201


def _names(args: argparse.Namespace) -> list[str]:
    known = [*SYNTHETIC, *RECORDED]
    if not args.models and not args.beside:
        raise OptionError("Name models to score, or earlier boards with --beside.")
    if args.sets is None:
        left = [name for name in known if name not in RECORDED or _recordings(args)]
        return left if args.final else [name for name in left if not is_final(name)]
    names = [name.strip() for name in args.sets.split(",")]
    strange = [name for name in names if name not in known]
    if strange:
        raise OptionError(f"--sets: there is no {strange[0]!r}; expected some of {known}.")
    kept = [name for name in names if is_final(name)]
    if kept and not args.final:
        raise OptionError(
            f"{', '.join(kept)}: these sets are for the end. A model that is changed after a look "
            "at them cannot be tested with them again. Add --final if it will not be."
        )
    return names


def _recordings(args: argparse.Namespace) -> Path | None:
    if args.recordings:
        return Path(args.recordings)
    shared = os.environ.get("MT3_SHARED")
    return Path(shared) / "audio" if shared else None


if __name__ == "__main__":
    sys.exit(guarded(main))
