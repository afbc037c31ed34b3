"""Folders as inputs: what is taken, what is passed over, and where results of one name go."""

from __future__ import annotations

import io
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_runtime.batch.records import journal
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.commands import folder_inputs as folders
from mt3_runtime.commands import jobs
from mt3_runtime.commands.folder_inputs import AUDIO_SUFFIXES, PYAV, SNDFILE, find_inputs
from mt3_runtime.errors import AudioError, OptionError, OutputError
from mt3_runtime.files.formats import load_notes, parse_json

posix = pytest.mark.skipif(os.name != "posix", reason="needs links and named pipes")


@pytest.fixture
def without_av(monkeypatch):
    """As where the extra is not installed."""
    monkeypatch.setattr(folders, "find_spec", lambda name: None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An own folder as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(*paths, content=b"x"):
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)


def looked_up(*names):
    """The names taken, and what was told."""
    told: list[str] = []
    return [path.name for path in find_inputs(names, tell=told.append)], told


# --- what is taken -------------------------------------------------------------------------------


def test_every_suffix_of_libsndfile_is_taken_in_any_case(folder, without_av):
    names = [f"x{suffix.upper()}" for suffix, by in AUDIO_SUFFIXES.items() if by == SNDFILE]
    put(*(f"in/{name}" for name in names))
    taken, told = looked_up("in")
    assert sorted(taken) == sorted(names)
    assert told == []
    assert {"x.MP2", "x.MPGA", "x.MP1", "x.BWF", "x.VOC"} <= set(taken)


@pytest.mark.parametrize("container", ["AVR", "PAF", "PVF", "SVX", "IRCAM", "VOC", "NIST", "WVE"])
def test_rare_suffixes_are_readable(container):
    buffer = io.BytesIO()
    subtype = "ALAW" if container == "WVE" else "PCM_16"
    soundfile.write(buffer, np.zeros(800), 8000, format=container, subtype=subtype)
    assert soundfile.info(io.BytesIO(buffer.getvalue())).frames == 800
    rare = {"IRCAM": ".sf", "NIST": ".sph"}
    assert AUDIO_SUFFIXES[rare.get(container, f".{container.lower()}")] == SNDFILE


def test_the_extras_formats_are_taken_where_it_is_installed(folder, monkeypatch):
    put("in/a.wav", "in/b.m4a", "in/c.WEBM", "in/d.txt")
    monkeypatch.setattr(folders, "find_spec", lambda name: ModuleSpec(name, None))
    assert looked_up("in") == (["a.wav", "b.m4a", "c.WEBM"], [])


# --- what is passed over -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [s for s, by in AUDIO_SUFFIXES.items() if by == PYAV])
def test_what_needs_the_extra_is_named(folder, without_av, suffix):
    put("in/a.wav", f"in/song{suffix}", f"in/other{suffix}", "in/readme.txt")
    taken, (told,) = looked_up("in")
    assert taken == ["a.wav"]
    assert told.startswith("in: passed over 2 files that look like audio: ")
    assert f'other{suffix}, song{suffix} (to read it: pip install "av' in told
    assert "readme" not in told


@pytest.mark.parametrize(
    "head",
    [
        b"RIFF\x24\x08\0\0WAVEfmt ",
        b"FORM\0\0\0\x24AIFF",
        b"fLaC\0\0\0\x22",
        b"OggS\0\x02",
        b"ID3\x03\0",
        b"\0\0\0\x20ftypM4A ",
        b"caff\0\x01",
    ],
)
@pytest.mark.parametrize("name", ["song", "song.part", "song.wav.bak"])
def test_audio_without_the_suffix_is_named(folder, without_av, head, name):
    put("in/a.wav", "in/notes.pdf")
    put(f"in/{name}", content=head + bytes(40))
    taken, (told,) = looked_up("in")
    assert taken == ["a.wav"]
    assert f"1 file that looks like audio: {name} (the suffix does not say so" in told
    assert looked_up(f"in/{name}") == ([name], [])  # as that says


@posix
def test_hidden_files_and_what_is_no_file(folder, without_av):
    put("in/a.wav", "in/.take.wav", "in/._a.wav", "in/.DS_Store")
    Path("in/album.wav").mkdir()
    Path("in/gone.flac").symlink_to("nowhere")
    os.mkfifo("in/pipe.mp3")
    taken, (told,) = looked_up("in")
    assert taken == ["a.wav"]
    assert ".take.wav (hidden)" in told
    assert "gone.flac, pipe.mp3 (no regular file)" in told
    assert "._a.wav" not in told
    assert "3 files" in told


def test_empty_files_are_taken_to_be_reported(folder):
    put("in/empty.wav", content=b"")
    assert looked_up("in") == (["empty.wav"], [])


def test_a_folder_of_nothing_but_that_is_an_error_that_names_them(folder, without_av):
    put(*(f"in/{number}.m4a" for number in range(8)))
    with pytest.raises(AudioError, match=r"no audio file .* Passed over: 0\.m4a, .* and 3 more \("):
        find_inputs(["in"])


def test_the_command_says_it_even_when_quiet(folder, without_av, default_bundle, capsys):
    put("in/b.wma", "in/c.m4a")
    soundfile.write("in/a.wav", np.zeros(4000), 16000)
    arguments = ["transcribe", "in", "-q", "-m", "default", "-o", "out/"]
    assert main(arguments) == ExitCode.OK
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("mt3: warning: in: passed over 2 files that look like audio: b.wma")
    assert "in/a.wav" in lines[1]
    assert "every sample is 0" in lines[1]  # each once, though it is a Python warning, too
    assert len(lines) == len(set(lines)) == 3
    assert sorted(os.listdir("out")) == [journal.NAME, "a.mid"]


def test_a_song_is_not_made_without_a_stem(folder, without_av, capsys):
    put("song/bass.wav", "song/drums.m4a")
    assert main(["transcribe", "--per-stem", "song", "-o", "song.mid"]) == ExitCode.FAILED
    error = capsys.readouterr().err
    assert "drums.m4a" in error
    assert "A song needs all its stems" in error


# --- results of one name -------------------------------------------------------------------------


def planned(*sources, **options):
    """Names of all results by source, and the errors."""
    refused: list[OutputError] = []
    found = jobs.plan([*map(Path, sources)], refuse=refused.append, **options)
    results = {str(job.source): [result.path for result in job.results] for job in found}
    return results, [str(error) for error in refused]


def test_inputs_of_one_name_get_their_suffix_and_the_others_are_as_ever(folder, capsys):
    put("in/song.wav", "in/song.mp3", "in/other.wav")
    found, refused = planned(
        "in/song.wav", "in/song.mp3", "in/other.wav", formats=("midi", "json"), output="out/"
    )
    place = Path("out")
    assert found == {
        "in/song.wav": [str(place / "song.wav.mid"), str(place / "song.wav.json")],
        "in/song.mp3": [str(place / "song.mp3.mid"), str(place / "song.mp3.json")],
        "in/other.wav": [str(place / "other.mid"), str(place / "other.json")],
    }
    assert refused == []
    assert capsys.readouterr().err.count("song.wav.mid") == 1


def test_stems_of_one_name(folder):
    put("song.wav", "song.ogg")
    found, refused = planned("song.wav", "song.ogg", stems=("bass", "drums"))
    assert found["song.ogg"] == ["song.ogg.bass.mid", "song.ogg.drums.mid"]
    assert refused == []


def test_what_no_name_tells_apart_fails_alone(folder):
    put("a/song.wav", "b/song.wav", "b/song.flac", "b/x.wav")
    sources = ["a/song.wav", "b/song.wav", "b/song.flac", "b/x.wav"]
    found, refused = planned(*sources, output="out/")
    assert [*found] == ["b/song.flac", "b/x.wav"]
    assert found["b/song.flac"] == [str(Path("out") / "song.flac.mid")]
    assert len(refused) == 2
    assert all("a/song.wav" in error and "b/song.wav" in error for error in refused)


def test_the_longer_name_may_be_taken_as_well(folder):
    """``song.wav.flac`` alone has the name that ``song.wav`` would get."""
    put("song.wav", "song.mp3", "song.wav.flac")
    found, refused = planned("song.wav", "song.mp3", "song.wav.flac", output="out/")
    names = [name for some in found.values() for name in some]
    assert len(set(names)) == len(names) == 3
    assert refused == []


@posix
def test_one_file_under_two_names_is_done_once(folder):
    put("in/song.wav")
    Path("link").mkdir()
    Path("link/song.wav").symlink_to(Path("in/song.wav").absolute())
    Path("link/alias.wav").symlink_to(Path("in/song.wav").absolute())
    sources = ["in/song.wav", str(Path("in/song.wav").absolute()), "in/../in/song.wav"]
    found, refused = planned(*sources, "link/song.wav", "link/alias.wav", output="out/")
    assert [*found] == ["in/song.wav", "link/alias.wav"]
    assert refused == []


@posix
@pytest.mark.parametrize(
    ("names", "clash"),
    [
        (("Song", "song"), True),
        (("cafe\u0301", "caf\u00e9"), True),
        (("STRASSE", "stra\u00dfe"), True),
        (("song", "songs"), False),
    ],
)
def test_file_systems_that_ignore_case(folder, names, clash):
    """A folder in which a name is found in either case, as all are on macOS and Windows."""
    put(*(f"{at}/{name}.wav" for at, name in enumerate(names)), "out/x")
    sources = [f"{at}/{name}.wav" for at, name in enumerate(names)]
    assert planned(*sources, output="out/")[1] == []
    Path("out/X").symlink_to("x")
    assert bool(planned(*sources, output="out/")[1]) == clash
    assert bool(planned(*sources, output="out/new/er")[1]) == clash  # one that will be made there


def test_results_that_exist_fail_alone_among_several(folder):
    put("a.wav", "b.wav", "a.mid")
    found, (error,) = planned("a.wav", "b.wav")
    assert [*found] == ["b.wav"]
    assert "a.mid exists; pass --overwrite" in error
    with pytest.raises(OptionError, match="a.mid exists"):  # nothing else was asked for
        planned("a.wav")


def test_the_command_does_what_can_be_done(folder, default_bundle, capsys):
    for name in ("in/song.wav", "in/song.flac", "in/other.wav", "b/other.wav", "b/y.wav"):
        Path(name).parent.mkdir(exist_ok=True)
        soundfile.write(name, 0.1 * np.sin(np.arange(9000) / 9), 16000)
    arguments = ["transcribe", "in", "b", "-q", "-m", "default", "-o", "out"]
    assert main(arguments) == ExitCode.FAILED
    results = ["song.flac.mid", "song.wav.mid", "y.mid"]
    assert sorted(os.listdir("out")) == [journal.NAME, *results]
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 2
    assert all("other.mid" in line for line in errors)


# --- standard input ------------------------------------------------------------------------------


@pytest.fixture
def piped(monkeypatch, audio):
    """Puts a recording, or something else, on standard input."""

    def put_there(content=None, *, terminal=False):
        if content is None:
            buffer = io.BytesIO()
            soundfile.write(buffer, audio, 16000, format="FLAC")
            content = buffer.getvalue()
        raw = io.BytesIO(content)
        raw.isatty = lambda: terminal
        raw.name = "<stdin>"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))

    return put_there


def test_standard_input_is_a_recording(folder, tiny_bundle, audio, piped, capfdbinary):
    soundfile.write("a.flac", audio, 16000)
    run = ["transcribe", "-q", "-m", str(tiny_bundle)]
    assert main([*run, "a.flac"]) == ExitCode.OK
    for output, name in (("x.mid", "x.mid"), ("out/", "out/stdin.mid")):
        piped()
        assert main([*run, "-", "-o", output]) == ExitCode.OK
        assert Path(name).read_bytes() == Path("a.mid").read_bytes()
    piped()
    capfdbinary.readouterr()
    assert main([*run, "-", "-o", "-", "-f", "json"]) == ExitCode.OK
    assert len(parse_json(capfdbinary.readouterr().out)) == len(load_notes("a.mid"))


@posix
def test_standard_input_among_files(folder, tiny_bundle, audio, piped, capsys):
    """Files called as it is shown, or as it is written, are files."""
    piped()
    put("-", content=sys.stdin.buffer.read())
    soundfile.write("<stdin>", audio[:40000], 16000, format="WAV")
    piped()
    names = ["-", "./-", "<stdin>", "-"]
    run = ["transcribe", "-q", "-m", str(tiny_bundle), *names, "-f", "csv", "-o", "out"]
    assert main(run) == ExitCode.OK
    assert sorted(os.listdir("out")) == ["-.csv", journal.NAME, "<stdin>.csv", "stdin.csv"]
    assert Path("out/-.csv").read_bytes() == Path("out/stdin.csv").read_bytes()


@pytest.mark.parametrize(
    ("content", "options", "code", "words"),
    [
        (b"words", ["-o", "x.mid"], ExitCode.FAILED, "<stdin> is not audio"),
        (b"", ["-o", "x.mid"], ExitCode.FAILED, "<stdin> is empty"),
        (None, [], ExitCode.USAGE, "needs a name: -o FILE"),
        (None, ["-f", "csv"], ExitCode.USAGE, "needs a name: -o FILE"),
        (None, ["--per-stem", "-o", "x.mid"], ExitCode.USAGE, "standard input has none"),
    ],
)
def test_standard_input_that_is_refused(
    folder, tiny_bundle, piped, capsys, content, options, code, words
):
    piped(content)
    assert main(["transcribe", "-", "-q", "-m", str(tiny_bundle), *options]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert os.listdir() == []


def test_standard_input_that_is_none(folder, piped, capsys, monkeypatch):
    piped(terminal=True)
    assert main(["transcribe", "-", "-o", "x.mid"]) == ExitCode.FAILED
    assert "is a terminal" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["transcribe", "-", "-o", "x.mid"]) == ExitCode.FAILED
    assert "no standard input" in capsys.readouterr().err


# --- tempo ---------------------------------------------------------------------------------------


def test_the_tempo_of_midi_files(folder, tiny_bundle, audio, capsys):
    soundfile.write("a.wav", audio, 16000)
    run = ["transcribe", "-q", "-m", str(tiny_bundle), "a.wav"]
    assert main([*run, "-o", "usual.mid"]) == ExitCode.OK
    assert main([*run, "-o", "slow.mid", "--tempo", "61.5"]) == ExitCode.OK
    usual, slow = Path("usual.mid").read_bytes(), Path("slow.mid").read_bytes()
    assert round(60e6 / 61.5).to_bytes(3, "big") in slow
    assert usual != slow
    onsets = [[note.onset for note in load_notes(name)] for name in ("usual.mid", "slow.mid")]
    assert np.allclose(*onsets, atol=1e-3)
    assert main([*run, "-f", "csv,json", "--tempo", "90"]) == ExitCode.USAGE
    assert "--tempo is that of MIDI files" in capsys.readouterr().err
    assert main([*run, "-f", "csv,midi", "--tempo", "90"]) == ExitCode.OK


@pytest.mark.parametrize("tempo", ["0", "19.9", "401", "nan", "inf", "fast", "-120"])
def test_tempi_that_are_none(folder, capsys, tempo):
    put("a.wav")
    assert main(["transcribe", "a.wav", f"--tempo={tempo}"]) == ExitCode.USAGE
    assert "quarters per minute, 20 to 400" in capsys.readouterr().err


def test_stems_without_notes_are_said(folder, tiny_bundle, audio, capsys):
    soundfile.write("a.wav", audio, 16000)
    run = ["transcribe", "-q", "a.wav", "-m", str(tiny_bundle), "--split", "stems"]
    assert main([*run, "--exclude", "drums"]) == ExitCode.OK
    error = capsys.readouterr().err
    assert "no notes were found of the instruments asked for" in error
    assert "a.wav: there are no notes, so no stem was written" in error
    assert os.listdir() == ["a.wav"]


@posix
@pytest.mark.parametrize(
    ("output", "link"),
    [("gone", "gone"), ("gone/", "gone"), ("gone/below/", "gone"), ("there/inner", "there/inner")],
)
def test_a_folder_that_is_a_link_to_nowhere_is_called_that(
    tmp_path, monkeypatch, capsys, audio, output, link
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path(link).symlink_to("nowhere")
    for name in ("a.wav", "b.wav"):
        soundfile.write(name, audio[:2000], 16000)
    assert main(["transcribe", "a.wav", "b.wav", "-o", output]) == ExitCode.FAILED
    said = capsys.readouterr().err
    assert f"{link} is a link to nowhere, which is not there" in said
    assert "File exists" not in said
    assert sorted(os.listdir()) == sorted({"a.wav", "b.wav", "there", link.split("/")[0]})
