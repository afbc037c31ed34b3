"""docs/input-limits.md against the code: every number by its constant, every verdict by trying."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import pytest
import soundfile

from mt3_export.variants import VARIANTS
from mt3_runtime.audio import levels, samples, segments, sources
from mt3_runtime.audio.containers import byte_source, decoders
from mt3_runtime.audio.containers.audio_kinds import ADTS, CONTAINERS
from mt3_runtime.audio.sources import load_audio, open_audio
from mt3_runtime.backends import ort_common
from mt3_runtime.bundles import bundle
from mt3_runtime.commands import folder_inputs
from mt3_runtime.errors import AudioError, AudioWarning, OptionError
from mt3_runtime.files import channels, formats, midi
from mt3_runtime.models import download
from mt3_runtime.notes.note import MAX_TIME, Note
from tests import needs
from tests.pages import CODE, TEXTS, rows, section

PAGE = TEXTS["docs/input-limits.md"]


def cell(heading: str, row: str) -> str:
    """All cells of a row behind its first."""
    (found,) = [
        cells[1:] for cells in rows(section(PAGE, heading)) if cells[0].replace("`", "") == row
    ]
    return " | ".join(found)


def decibels(peak: float) -> str:
    return f"{-20 * np.log10(peak):.0f} dB"


AUDIO = [
    ("sample rate", f"{sources.MIN_RATE:,.0f} to {sources.MAX_RATE:,.0f} Hz"),
    ("channels of a file", f"1 to {samples.MAX_CHANNELS}, averaged"),
    ("channels of an array", f"`[samples, channels]` with up to {samples.MAX_CHANNELS}"),
    ("channels of an array", f"`[channels, samples]` with up to {levels.USUAL_CHANNELS}"),
    ("channels of an array", f"more than {levels.USUAL_CHANNELS} with a warning"),
    ("amplitude", f"up to {sources.LOUDEST:.0e}".replace("e+", "e")),
    (
        "a pipe, or a file object that cannot seek",
        f"{byte_source._MAX_UNSEEKABLE / 2**30:g} GiB of compressed bytes",
    ),
    ("a list of arrays", f"up to {levels.USUAL_CHANNELS} of equal length"),
]
LEVELS = [
    ("never scaled", f"exceeds {levels.LOUDEST_PLAUSIBLE:g}, or"),
    ("never scaled", f"one reaches {levels.INTEGERS_FROM:g}"),
    ("silent", f"above 2^{np.log2(levels.DITHER):.0f} ({decibels(levels.DITHER)} below"),
    ("very quiet", f"above 2^{np.log2(levels.QUIETEST_PLAUSIBLE):.0f} ("),
    ("very quiet", f"({decibels(levels.QUIETEST_PLAUSIBLE)} below"),
    ("channels cancel", f"has {-10 * np.log10(levels.CANCELLED):.0f} dB less energy"),
    (
        "channels cancel",
        f"for {decoders.BLOCK_SECONDS:g} seconds or {levels.CANCELLED_SHARE:.0%} of".replace(
            "%", " %"
        ),
    ),
]
OPTIONS = [
    ("tempo", f"{midi.MIN_TEMPO:g} to {midi.MAX_TEMPO:g} quarters per minute"),
    ("threads", f"1 to {ort_common.MAX_THREADS}"),
    ("tokens of a segment", f"{VARIANTS['magenta_mt3'].decoding.max_tokens} ("),
    ("tokens of a segment", f"({VARIANTS['mt3_pytorch'].decoding.max_tokens} for the PyTorch"),
]
FILES = [
    ("melodic tracks that sound at once in a MIDI file", f"{len(channels.MELODIC_CHANNELS)};"),
    ("a manifest, bundle.json", f"{bundle.MAX_MANIFEST_BYTES:,} bytes"),
    ("a download of unknown size", f"{download.MOST / 2**30:g} GiB"),
]


@pytest.mark.parametrize(
    ("heading", "row", "text"),
    [
        (heading, *item)
        for heading, items in (
            ("Audio", AUDIO), ("Levels", LEVELS), ("Options", OPTIONS),
            ("Files of notes and models", FILES),
        )
        for item in items
    ],
)  # fmt: skip
def test_numbers_are_those_of_the_code(heading, row, text):
    assert text in cell(heading, row)


def test_blocks_and_segments():
    text = " ".join(section(PAGE, "Audio").split())
    config = segments.SegmentConfig()
    assert f"blocks of {decoders.BLOCK_SECONDS:g} seconds" in text
    assert f"work at {config.sample_rate:,} Hz" in text
    assert f"segments of {config.samples / config.sample_rate:g} s" in text
    assert config.samples - segments.SegmentConfig.yourmt3(hop=256).samples == 1


def test_suffixes_are_those_that_folders_are_searched_for():
    table = section(PAGE, "Formats")
    named = {name for row in rows(table) for name in CODE.findall(row[-1])}
    readers = folder_inputs.AUDIO_SUFFIXES
    assert named == {name for name, by in readers.items() if by == folder_inputs.SNDFILE}


# --- verdicts -------------------------------------------------------------------------------------


def sound(seconds: float = 1.0, rate: int = 16000) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "DOUBLE"), ("WAV", "IMA_ADPCM"),
        ("WAV", "ALAW"), ("WAV", "ULAW"), ("WAV", "GSM610"), ("RF64", "PCM_16"),
        ("W64", "PCM_32"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"), ("MP3", "MPEG_LAYER_II"), ("AIFF", "PCM_16"), ("AU", "ULAW"),
        ("CAF", "FLOAT"), ("VOC", "PCM_16"), ("IRCAM", "PCM_16"), ("NIST", "PCM_16"),
        ("PAF", "PCM_16"), ("SVX", "PCM_16"), ("AVR", "PCM_16"), ("PVF", "PCM_16"),
    ],
)  # fmt: skip
def test_formats_of_the_table_are_read(container, subtype):
    file = io.BytesIO()
    try:
        soundfile.write(file, sound(), 16000, format=container, subtype=subtype)
    except (ValueError, soundfile.LibsndfileError):  # reads it, and does not write it
        needs.missing("encoders", f"libsndfile writes no {subtype}")
    file.seek(0)
    found = load_audio(file)
    assert len(found) == pytest.approx(16000, abs=1600)
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.3 / np.sqrt(2), abs=0.03)


NAMES = {
    "MP4": "MP4", "QuickTime": "QuickTime", "WebM": "WebM", "Matroska": "Matroska",
    "WMA or WMV": "WMA", "AMR": "AMR", "DSF": "DSD", "DSDIFF": "DSD",
    "Monkey's Audio": "Monkey's Audio", "WavPack": "WavPack", "True Audio": "True Audio",
    "TAK": "TAK", "Musepack": "Musepack", "RealMedia": "RealAudio", "AC-3": "AC-3", "DTS": "DTS",
    "ADIF AAC": "raw AAC", "AAC": "raw AAC",
}  # fmt: skip
"""What the code calls a container -> what the page calls it; others are of video."""


def test_what_is_not_read_is_named():
    text = " ".join(section(PAGE, "Formats").partition("Not read:")[2].split())
    known = {container.name for container in (*CONTAINERS, ADTS)}
    assert set(NAMES) <= known
    assert all(name in text for name in NAMES.values())
    assert not [name for name in known - set(NAMES) if name in text]


@pytest.mark.parametrize(
    "head",
    [
        b"\0\0\0\x20ftypM4A \0\0\0\0", b"\x1a\x45\xdf\xa3\x01webm", b"wvpk" + bytes(28),
        b"#!AMR\n" + bytes(26), b"MAC \x96\x0f" + bytes(26), b"MPCKSH" + bytes(26),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_with_the_way_out(head):
    with pytest.raises(AudioError, match="ffmpeg -i INPUT"):
        load_audio(io.BytesIO(head + bytes(4096)), containers=False)


@pytest.mark.parametrize("rate", [999, 10_000_001, 44.1])
def test_rates_beyond_the_limits_are_refused(rate):
    with pytest.raises(OptionError, match="1000 to 1e"):
        open_audio(sound(), sr=rate)


def test_numbers_of_channels():
    assert len(load_audio(np.zeros((100, 64), np.float32))) == 100
    assert len(load_audio(np.zeros((8, 100), np.float32))) == 100
    for shape in ((100, 65), (9, 100)):
        with pytest.raises(AudioError, match="not one recording"):
            load_audio(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(9, np.int64), np.zeros(9, np.complex64), np.zeros(9, bool), np.zeros(0),
        np.array([0.0, np.nan]), np.array([0.0, np.inf]), np.array([1e31]), ["a", "b"],
    ],
    ids=str,
)  # fmt: skip
def test_arrays_that_are_refused(bad):
    with pytest.raises(AudioError):
        load_audio(bad)


@pytest.mark.parametrize(
    "data", [b"", b"just a text, no sound", b"MThd\0\0\0\6\0\1\0\1\0\x60", b"RIFF", bytes(5000)]
)
def test_files_that_are_refused(data):
    with pytest.raises(AudioError, match="expected"):
        load_audio(io.BytesIO(data))


def test_one_sample_is_enough():
    assert len(load_audio(np.ones(1, np.float32))) == 1


def test_a_file_that_was_cut_is_read_as_far_as_it_goes():
    file = io.BytesIO()
    soundfile.write(file, sound(4.0), 16000, format="WAV")
    with pytest.warns(AudioWarning, match=r"ends early: 2\.0\d s of 4\.00 s"):
        found = load_audio(io.BytesIO(file.getvalue()[: 44 + 64000]))
    assert len(found) == 32000


def said(block: np.ndarray) -> str:
    with open_audio(block) as stream, warnings.catch_warnings():
        warnings.simplefilter("error")  # reading alone says nothing
        list(stream)
    return " ".join(stream.level_warnings)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (27.0 * sound(), "-1 to 1 is expected"),  # peak 8.1
        (26.0 * sound(), ""),  # 7.8
        (np.round(7 * sound()), "-1 to 1 is expected"),  # whole numbers up to 2
        (2.0**-14 / 0.3 * sound() * 0.99, "as good as silent"),
        (2.0**-8 / 0.3 * sound() * 0.99, "very quiet"),
        (2.0**-8 / 0.3 * sound() * 1.02, ""),
        (np.stack([sound(), -sound()], 1), "cancel each other"),
    ],
)
def test_levels_are_said_from_where_the_page_says(block, text):
    assert (text in said(block)) if text else said(block) == ""


@pytest.mark.parametrize("row", ["1000000001,1000000002,60", "-1,2,60", "0,1,128", "0,1,-1"])
def test_notes_beyond_the_limits_are_refused(row, tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text(f"onset,offset,pitch\n{row}\n")
    with pytest.raises(OptionError):
        formats.load_notes(path)
    path.write_text("onset,offset,pitch\n999999999,1000000000,127\n")
    assert formats.load_notes(path) == [Note(999999999.0, 1e9, 127, formats.DEFAULT_VELOCITY, 0)]


def test_the_page_gives_times_and_pitches_as_the_code_has_them():
    assert f"0 to {MAX_TIME:,.0f} s" in cell(
        "Files of notes and models", "times in MIDI, JSON, CSV"
    )
    assert "0 to 127" in cell("Files of notes and models", "pitch, velocity, program")
    assert re.search(r"type 0 and 1", cell("Files of notes and models", "MIDI that is read"))
