"""YourMT3's notes against its own code: the golden, and new streams for every run of the oracle.

With `upstream_quirks` the notes are equal in every bit.  Without, none of them is missing, and
where nothing was lost nothing differs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import pytest

from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.notes.base import ChannelTokens, SegmentReport
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import YOURMT3_CHANNELS, NoteRules
from mt3_runtime.notes.yourmt3_assembler import ChannelAssembler
from tests.parity.recordings import Oracle
from tests.parity.yourmt3_streams import VOCABULARY, Recording, recording

GOLDEN = Path(__file__).parent / "golden" / "yourmt3_notes.json"
START = SegmentConfig.yourmt3(hop=300).start
RULES = {1: NoteRules.yourmt3(), 13: NoteRules.yourmt3(channels=YOURMT3_CHANNELS)}

Row = tuple[float, float, int, int, bool]  # onset, offset, pitch, program, is_drum


def rows(notes: Iterable[Note]) -> list[Row]:
    return sorted((n.onset, n.offset, n.pitch, n.program, n.is_drum) for n in notes)


def theirs(notes: Iterable[Sequence[float]]) -> list[Row]:
    """The original's notes; it calls drums program 128, and singing voices 100 and 101."""
    return sorted(
        (onset, offset, int(pitch), 0 if drum else RULES[1].program(int(program)), bool(drum))
        for onset, offset, pitch, program, drum in notes
    )


def ours(segments: Recording, *, quirks: bool) -> tuple[list[Row], list[SegmentReport]]:
    rules = RULES[len(segments[0])]
    assembler = ChannelAssembler(VOCABULARY, rules, upstream_quirks=quirks)
    notes, reports = [], []
    for index, channels in enumerate(segments):
        following = START(index + 1) if index + 1 < len(segments) else None
        spoken = [ChannelTokens(tokens) for tokens in channels]
        settled, report = assembler.add_channels(spoken, START(index), following)
        notes += settled
        reports.append(report)
    return rows(notes + assembler.finish()), reports


def check(recordings: Sequence[Recording], expected: Sequence[Sequence[Sequence[float]]]) -> None:
    assert len(recordings) == len(expected)
    faithful = 0
    for segments, notes in zip(recordings, expected, strict=True):
        original = theirs(notes)
        assert ours(segments, quirks=True)[0] == original
        kept, reports = ours(segments, quirks=False)
        assert {(row[0], *row[2:]) for row in original} <= {(row[0], *row[2:]) for row in kept}
        assert not any(report.discarded_tokens for report in reports)
        cut = any(row[1] - row[0] <= 0.01 + 1e-9 and not row[4] for row in original)
        if not cut and not any(report.missing_tie for report in reports):
            assert kept == original
            faithful += 1
    assert faithful >= len(recordings) // 10
    assert len(list(chain(*expected))) > 5 * len(recordings)


def test_golden() -> None:
    golden = json.loads(GOLDEN.read_text())
    check(golden["recordings"], golden["notes"])


@pytest.mark.parametrize("seed", [1, 2])
def test_streams_that_no_golden_holds(oracle: Oracle, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    recordings = [recording(rng) for _ in range(300)]
    source, target = tmp_path / "tokens.json", tmp_path / "notes.json"
    source.write_text(json.dumps(recordings))
    done = oracle("yourmt3_notes.py", source, target)
    assert done.returncode == 0, done.stderr
    check(recordings, json.loads(target.read_text())["notes"])
