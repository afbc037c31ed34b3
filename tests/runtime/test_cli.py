from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime import cli
from mt3_runtime.cli import ExitCode, Listing, main
from mt3_runtime.commands import calibrate_command, jobs, results
from mt3_runtime.commands import folder_inputs as folders
from mt3_runtime.commands.transcribe_command import TranscribeCommand
from mt3_runtime.errors import (
    AudioError,
    AudioWarning,
    BundleError,
    DeviceError,
    MissingDependencyError,
    OptionError,
    OutputError,
)
from mt3_runtime.leakage.leakage_report import LeakageReport
from mt3_runtime.notes.note import Note
from mt3_runtime.progress import Meter
from mt3_runtime.transcription import Transcription
from tests.answering import AnsweringModel

NOTE = Note(0.5, 1.0, 60, 100, 0, is_drum=False)


@dataclass
class FakeResult:
    duration: float = 2.0
    notes: tuple[Note, ...] = (NOTE,)
    segments: tuple[object, ...] = ()
    model: str = "fake"
    warnings: list[str] = field(default_factory=list)
    leakage: LeakageReport = field(default=LeakageReport("auto", 1))
    smoothing: LeakageReport = field(default=LeakageReport())

    def summary(self) -> str:
        return f"{self.duration:.1f} s of audio, {len(self.notes)} notes"


class FakeModel(AnsweringModel):
    """Answers by file name: ``bad*`` is not audio, ``torn*`` is damaged, ``bug*`` is our fault."""

    def __init__(self) -> None:
        self.loads: list[dict[str, object]] = []
        self.calls: list[tuple[str, dict[str, object]]] = []

    def load(self, path: Path, **options: object) -> FakeModel:
        self.loads.append({"path": path, **options})
        return self

    def answer(self, source: Path, name: str, options: dict[str, object]) -> FakeResult | Exception:
        self.calls.append((name, options))
        if name.startswith("bad"):
            return AudioError(f"{source} is not audio")
        if name.startswith("bug"):
            return ZeroDivisionError("oops")
        if name.startswith("torn"):
            message = "only half of it was read"
            warnings.warn(message, AudioWarning, stacklevel=1)
            warnings.warn("a library is old", DeprecationWarning, stacklevel=1)
            return FakeResult(warnings=[message, "1 segments reached the token limit"])
        return FakeResult()


@pytest.fixture
def model(monkeypatch, tmp_path, tiny_bundle):
    fake = FakeModel()
    bundle = tmp_path / "cache" / "bundles" / "tiny"
    bundle.mkdir(parents=True)
    shutil.copy(tiny_bundle / "bundle.json", bundle)
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MT3_MODEL", raising=False)
    monkeypatch.setattr("mt3_runtime.loading.load_model", fake.load)
    return fake


@pytest.fixture
def songs(tmp_path):
    folder = tmp_path / "songs"
    folder.mkdir()
    for name in ("a.wav", "b.flac", ".hidden.wav", "readme.txt"):
        (folder / name).write_bytes(b"x")
    return folder


# The frame around the commands -------------------------------------------------------------------


def test_help_lists_every_command_and_what_the_missing_ones_need(monkeypatch, capsys):
    monkeypatch.setattr(cli, "entry_points", lambda group: ())  # no other package is installed
    assert main(["--help"]) == ExitCode.OK
    text = " ".join(capsys.readouterr().out.split())
    for name in ("transcribe", "models", "export", "build", "engines", "calibrate", "evaluate"):
        assert f" {name} " in text
    for name in ("plot", "bench", "doctor", "70 internal"):
        assert name in text
    assert "(not installed; extra: trt)" in text


def test_version_names_the_distribution(capsys):
    assert main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("mt3-runtime ")


def test_an_installation_without_metadata_still_answers(monkeypatch, capsys):
    def missing() -> str:
        raise cli.PackageNotFoundError

    monkeypatch.setattr(cli, "version", missing)
    assert main(["--version"]) == ExitCode.OK
    assert "(not installed)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["transcribe", "models", "bench", "doctor"])
def test_the_runtimes_own_commands_load_and_explain_themselves(name, capsys):
    assert cli.listings()[name].load().help == cli.listings()[name].help
    assert main([name, "--help"]) == ExitCode.OK
    assert f"usage: mt3 {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["models", "nonsense"], []])
def test_a_wrong_command_line_is_a_usage_error(arguments, capsys):
    assert main(arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error" in captured.err


def test_main_reads_the_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mt3", "--version"])
    assert main() == ExitCode.OK
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "extra"), [("engines", "trt"), ("calibrate", "calibration"), ("plot", "viz")]
)
def test_a_command_without_its_package_names_the_extra(monkeypatch, capsys, name, extra):
    for module in (cli, calibrate_command):
        monkeypatch.setattr(module, "entry_points", lambda group: ())
    assert main([name, "x"]) == ExitCode.UNUSABLE
    error = capsys.readouterr().err
    assert f"with the extra [{extra}]" in error
    assert error.count("\n") == 1


def test_a_package_that_lacks_another_names_it(monkeypatch, capsys):
    entry = EntryPoint("export", "no_such_package.commands:Export", cli.COMMAND_GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: (entry,))
    assert main(["export"]) == ExitCode.UNUSABLE
    error = capsys.readouterr().err
    assert "'export' is registered, but cannot be loaded" in error
    assert "no_such_package" in error
    assert error.count("\n") == 1


class Hello:
    name = "hello"
    help = "says 100 % hello"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--to", default="you")

    def run(self, args: argparse.Namespace) -> int:
        print("hello", args.to)
        return ExitCode.OK


def test_rooms_add_commands_but_cannot_replace_the_runtimes_own(monkeypatch, capsys):
    entries = [
        EntryPoint(name, "not.used:Hello", cli.COMMAND_GROUP) for name in ("hello", "doctor")
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)
    found = cli.listings()
    assert found["doctor"].source.value.startswith("mt3_runtime.")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Hello)
    assert main(["hello", "--to", "me"]) == ExitCode.OK
    assert capsys.readouterr().out == "hello me\n"
    assert main(["hello", "--help"]) == ExitCode.OK
    assert "Says 100 % hello." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OptionError("no"), ExitCode.USAGE),
        (AudioError("no"), ExitCode.FAILED),
        (OutputError("no"), ExitCode.FAILED),
        (BundleError("no"), ExitCode.UNUSABLE),
        (DeviceError("no"), ExitCode.UNUSABLE),
        (MissingDependencyError("no"), ExitCode.UNUSABLE),
    ],
)
def test_errors_of_ours_are_one_line_and_a_code(monkeypatch, capsys, error, code):
    assert _run_raising(monkeypatch, error) == code
    assert capsys.readouterr().err == "mt3: error: no\n"


def _run_raising(monkeypatch, error: BaseException) -> int:
    class Raises(Hello):
        def run(self, args: argparse.Namespace) -> int:
            raise error

    monkeypatch.setattr(cli, "listings", lambda: {"hello": Listing("hello", "", None, None)})
    monkeypatch.setattr(Listing, "load", lambda self: Raises())
    return main(["hello"])


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    assert _run_raising(monkeypatch, KeyboardInterrupt()) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "mt3: interrupted\n"


def test_a_bug_is_one_line_unless_debugging(monkeypatch, capsys):
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    assert _run_raising(monkeypatch, ZeroDivisionError("oops")) == ExitCode.INTERNAL
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ZeroDivisionError: oops" in error
    assert cli.DEBUG_VARIABLE in error
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(ZeroDivisionError):
        _run_raising(monkeypatch, ZeroDivisionError("oops"))


def test_a_reader_that_went_away_is_no_error(monkeypatch, capsys):
    assert _run_raising(monkeypatch, BrokenPipeError()) == ExitCode.BROKEN_PIPE
    wrapped = OutputError("the pipe is closed")
    wrapped.__cause__ = BrokenPipeError()
    assert _run_raising(monkeypatch, wrapped) == ExitCode.BROKEN_PIPE
    assert capsys.readouterr().err == ""


def _mt3(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    code = "import sys; from mt3_runtime.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)


def test_a_closed_pipe_stays_silent_to_the_very_end():
    reading, writing = os.pipe()
    os.close(reading)
    ended = _mt3("models", "list", stdout=writing)
    os.close(writing)
    assert ended.returncode == ExitCode.BROKEN_PIPE
    assert ended.stderr == b""


def test_help_answers_without_numpy_or_onnx_runtime():
    code = (
        "import sys; from mt3_runtime.cli import main; main(['--help']); "
        "sys.exit(','.join({'numpy', 'onnxruntime', 'mido', 'rich'} & set(sys.modules)) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.stderr == b""
    assert ended.returncode == 0


# What goes where ---------------------------------------------------------------------------------


def targets(planned: list[jobs.Job]) -> list[str]:
    return [result.path for job in planned for result in job.results]


def test_results_go_beside_their_inputs_by_default(songs):
    sources = folders.find_inputs([str(songs)])
    assert [source.name for source in sources] == ["a.wav", "b.flac"]
    planned = jobs.plan(sources, formats=("midi", "csv"), folder=True)
    expected = [songs / name for name in ("a.mid", "a.csv", "b.mid", "b.csv")]
    assert targets(planned) == [str(path) for path in expected]


def test_one_input_goes_into_the_named_file_and_its_suffix_tells_the_format(songs):
    (planned,) = jobs.plan([songs / "a.wav"], output=str(songs / "x.jsonl"))
    assert planned.results == (jobs.Result("jsonl", str(songs / "x.jsonl")),)
    (planned,) = jobs.plan([songs / "a.wav"], output=str(songs / "x.dat"), formats=("csv",))
    assert planned.results[0].format == "csv"


@pytest.mark.parametrize("output", ["out/", "songs"])
def test_a_folder_takes_results_under_the_inputs_names(songs, monkeypatch, output):
    monkeypatch.chdir(songs.parent)
    planned = jobs.plan([songs / "a.wav"], output=output)
    assert targets(planned) == [str(Path(output) / "a.mid")]


def test_several_results_make_a_new_folder(songs, monkeypatch):
    monkeypatch.chdir(songs.parent)
    planned = jobs.plan([songs / "a.wav"], output="new/deep", formats=("midi", "json"))
    assert targets(planned) == [str(Path("new/deep/a.mid")), str(Path("new/deep/a.json"))]
    assert not Path("new").exists()


def test_a_named_file_is_replaced_but_a_made_up_name_is_not(songs):
    (songs / "a.mid").write_bytes(b"mine")
    assert jobs.plan([songs / "a.wav"], output=str(songs / "a.mid"))
    with pytest.raises(OptionError, match="--overwrite"):
        jobs.plan([songs / "a.wav"])
    assert jobs.plan([songs / "a.wav"], overwrite=True)


def test_what_comes_in_while_a_batch_runs_is_not_replaced(songs):
    (planned,) = jobs.plan([songs / "a.wav"], formats=("json", "csv"))
    (named,) = jobs.plan([songs / "a.wav"], output=str(songs / "a.csv"))
    (songs / "a.csv").write_bytes(b"mine")
    nothing = Transcription((), (), 1.0, "tiny", "")
    with pytest.raises(OutputError, match=r"a\.csv exists by now"):
        results.write(nothing, planned)
    assert not (songs / "a.json").exists()
    assert (songs / "a.csv").read_bytes() == b"mine"
    assert results.write(nothing, named) == [str(songs / "a.csv")]


def test_clashes_are_found_before_any_work(songs):
    other = songs / "more" / "a.wav"
    other.parent.mkdir()
    other.write_bytes(b"x")
    with pytest.raises(OutputError, match=r"songs.a\.wav and .*more.a\.wav would both be written"):
        jobs.plan([songs / "a.wav", other], output=str(songs / "out"))


def test_an_output_must_not_be_an_input(songs):
    with pytest.raises(OutputError, match="input"):
        jobs.plan([songs / "a.wav"], output=str(songs / "a.wav"), formats=("midi",))
    (songs / "a.csv").write_bytes(b"x")
    with pytest.raises(OutputError, match="input"):
        jobs.plan([songs / "b.flac", songs / "a.csv"], formats=("csv",), overwrite=True)


@pytest.mark.parametrize(
    ("output", "formats", "message"),
    [
        ("x.mid", ("midi", "csv"), "do not fit into the one file"),
        ("x.csv", ("midi",), "looks like csv"),
        ("x.wav", (), "suffix"),
        ("-", ("midi", "csv"), "one input file and one format"),
    ],
)
def test_contradictions_are_refused(songs, output, formats, message):
    with pytest.raises(OptionError, match=message):
        jobs.plan([songs / "a.wav"], output=output, formats=formats)


def test_a_folder_must_be_possible(songs, monkeypatch):
    with pytest.raises(OutputError, match="is a file"):
        jobs.plan([songs / "a.wav"], output=f"{songs}/b.flac/")
    with pytest.raises(OutputError, match="no folder"):
        jobs.plan([songs / "a.wav"], output=str(songs / "missing" / "x.mid"))
    (songs / "a.mid").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        jobs.plan([songs / "a.wav"])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="no permission"):
        jobs.plan([songs / "a.wav"], output=str(songs / "new") + "/")


def test_a_folder_without_audio_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(AudioError, match=r"no audio file .*\.flac"):
        folders.find_inputs([str(tmp_path)])


def test_formats_are_a_list_of_known_names():
    assert jobs.parse_formats("midi, csv,midi") == ("midi", "csv")
    with pytest.raises(OptionError, match="wav"):
        jobs.parse_formats("midi,wav")


@given(
    stems=st.lists(st.text("abc.", min_size=1, max_size=4).map("x".__add__), min_size=1),
    formats=st.lists(st.sampled_from(["midi", "json", "jsonl", "csv"]), unique=True),
)
def test_a_plan_is_complete_and_never_writes_two_things_to_one_place(stems, formats):
    sources = [Path("in") / f"{stem}.wav" for stem in stems]
    sources += [Path("in") / f"{stem}.mp3" for stem in stems[1:]]
    sources += [Path("other") / f"{stem}.wav" for stem in stems[2:]]
    refused: list[OutputError] = []
    planned = jobs.plan(
        sources, output="no-such-folder/", formats=tuple(formats), refuse=refused.append
    )
    assert len(planned) + len(refused) == len(set(sources))
    assert len(set(targets(planned))) == len(planned) * max(1, len(formats))


# mt3 transcribe ----------------------------------------------------------------------------------


def test_transcribes_one_file(model, songs, capsys):
    assert main(["transcribe", str(songs / "a.wav")]) == ExitCode.OK
    assert (songs / "a.mid").read_bytes().startswith(b"MThd")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2.0 s of audio, 1 notes, " in captured.err
    assert "times real time" in captured.err
    assert model.loads[0]["path"].name == "tiny"
    assert sorted(path.name for path in songs.glob("*.mid*")) == ["a.mid"]


def test_unknown_instruments_are_refused_before_anything_else(model, songs, capsys):
    arguments = ["transcribe", str(songs / "a.wav"), "--exclude", "vioiln", "-m", "tiny"]
    assert main(arguments) == ExitCode.USAGE
    assert "did you mean violin" in capsys.readouterr().err
    assert model.loads == []


def test_options_reach_the_model(model, songs, capsys):
    options = "--device cpu --threads 2 --profile compat --decoding t5x --no-auto-filter"
    options += " --upstream-quirks -q --exclude 33 --grammar --min-confidence .25 --smooth"
    line_up = ["--instruments", "bass, drums"]
    arguments = ["transcribe", str(songs / "a.wav"), *options.split(), *line_up]
    assert main([*arguments, "-m", "tiny"]) == ExitCode.OK
    del model.loads[0]["path"]
    assert model.loads == [
        {
            "device": "cpu",
            "threads": 2,
            "auto_filter": False,
            "decoding": "t5x",
            "profile": "compat",
        }
    ]
    chosen = {"instruments": "bass, drums", "exclude": "33"}
    chosen |= {"grammar": True, "min_confidence": 0.25, "smooth": True, "upstream_quirks": True}
    assert model.calls == [("a.wav", chosen)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("", True),
        ("--auto-filter on", True),
        ("--auto-filter classic", "classic"),
        ("--auto-filter off", False),
        ("--no-auto-filter", False),
    ],
)
def test_filters_by_name(model, songs, option, value):
    assert main(["transcribe", str(songs / "a.wav"), *option.split()]) == ExitCode.OK
    assert model.loads[0]["auto_filter"] == value


def test_the_report_of_the_filter(model, songs, capsys):
    assert main(["transcribe", str(songs / "a.wav"), "-q", "--report"]) == ExitCode.OK
    captured = capsys.readouterr()
    assert captured.out == ""
    report = "leakage filter (auto): 1 notes, none changed"
    assert captured.err == f"mt3: {songs / 'a.wav'}: {report}\n"


def test_a_folder_goes_into_a_folder_in_every_format(model, songs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["transcribe", str(songs), "-o", str(out), "-f", "midi,json"]) == ExitCode.OK
    names = [".mt3-batch.jsonl", "a.json", "a.mid", "b.json", "b.mid"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert json.loads((out / "a.json").read_text())["notes"][0]["pitch"] == 60
    assert "found 2 files" in capsys.readouterr().err
    assert len(model.loads) == 1


def test_one_bad_file_does_not_stop_the_others(model, songs, capsys):
    (songs / "bad.wav").write_bytes(b"x")
    assert main(["transcribe", str(songs), str(songs / "missing.wav")]) == ExitCode.FAILED
    error = capsys.readouterr().err
    assert f"mt3: error: {songs / 'bad.wav'} is not audio\n" in error
    assert "missing.wav: there is no such file" in error
    assert sorted(path.name for path in songs.glob("*.mid")) == ["a.mid", "b.mid"]


def test_nothing_is_loaded_when_no_input_exists(model, songs):
    assert main(["transcribe", str(songs / "missing.wav")]) == ExitCode.FAILED
    assert model.loads == []


def test_a_result_that_cannot_be_written_is_reported(model, songs, monkeypatch, capsys):
    def full(path: str, data: bytes) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("mt3_runtime.commands.results.write_output", full)
    assert main(["transcribe", str(songs)]) == ExitCode.FAILED
    assert capsys.readouterr().err.count("the disk is full") == 2


def test_warnings_are_shown_even_when_quiet(model, songs, capsys):
    (songs / "torn.wav").write_bytes(b"x")
    assert main(["transcribe", "-q", str(songs / "torn.wav")]) == ExitCode.OK
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["warning", "warning", "warning"]
    assert "a library is old" in lines[0]
    assert "torn.wav: only half of it was read" in lines[1]
    assert "token limit" in lines[2]


def test_stdout_is_data(model, songs, capfdbinary):
    arguments = ["transcribe", str(songs / "a.wav"), "-o", "-"]
    assert main([*arguments, "-f", "csv"]) == ExitCode.OK
    captured = capfdbinary.readouterr()
    assert captured.out.startswith(b"onset,offset,pitch")
    assert b"-> stdout" in captured.err
    assert main(arguments) == ExitCode.OK
    assert capfdbinary.readouterr().out.startswith(b"MThd")


def test_midi_is_not_poured_into_a_terminal(model, songs, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["transcribe", str(songs / "a.wav"), "-o", "-"]) == ExitCode.USAGE
    assert "binary" in capsys.readouterr().err


def test_a_closed_pipe_ends_the_work(model, songs, monkeypatch, capsys):
    def closed(path: str, data: bytes) -> None:
        raise OutputError("the reader closed the pipe") from BrokenPipeError()

    monkeypatch.setattr("mt3_runtime.commands.results.write_output", closed)
    arguments = ["transcribe", "-q", str(songs / "a.wav"), "-o", "-", "-f", "csv"]
    assert main(arguments) == ExitCode.BROKEN_PIPE
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5"])
def test_threads_are_counted_from_one(threads, songs, capsys):
    arguments = ["transcribe", str(songs / "a.wav"), f"--threads={threads}"]
    assert main(arguments) == ExitCode.USAGE
    assert "1 or more" in capsys.readouterr().err


def test_a_clash_is_refused_before_the_model_is_loaded(model, songs, capsys):
    (songs / "a.mid").write_bytes(b"mine")
    assert main(["transcribe", str(songs / "a.wav")]) == ExitCode.USAGE
    assert model.loads == []
    assert (songs / "a.mid").read_bytes() == b"mine"
    assert "--overwrite" in capsys.readouterr().err


def test_without_a_model_the_way_to_one_is_told(
    songs, tmp_path, monkeypatch, capsys, nothing_shipped
):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("MT3_MODEL", raising=False)
    assert main(["transcribe", str(songs / "a.wav")]) == ExitCode.UNUSABLE
    error = capsys.readouterr().err
    assert "mt3 export" in error
    assert not (songs / "a.mid").exists()


def test_a_bug_in_the_middle_leaves_no_file(model, songs, capsys):
    (songs / "bug.wav").write_bytes(b"x")
    assert main(["transcribe", str(songs / "bug.wav")]) == ExitCode.INTERNAL
    assert not list(songs.glob("*.mid*"))


def test_the_command_is_found_under_its_name():
    assert isinstance(cli.listings()["transcribe"].load(), TranscribeCommand)


# The progress bar --------------------------------------------------------------------------------


def test_the_bar_is_drawn_for_a_person_only(monkeypatch, capsys):
    with Meter("song.wav", unit="s") as meter:
        meter.update(1.0, 2.0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Meter("song.wav", unit="s") as meter:
        meter.update(1.0, 2.0, "7 notes")
        meter.update(1.5, None)
    drawn = capsys.readouterr().err
    assert "song.wav" in drawn
    with Meter("song.wav", unit="s", quiet=True) as meter:
        meter.update(1.0, 2.0)
    assert capsys.readouterr().err == ""


def test_the_bar_is_that_of_all_files_or_of_the_only_one(model, songs, monkeypatch):
    drawn: dict[str, list[tuple[float, float | None, str]]] = {}

    class Watched(Meter):
        def update(self, done: float, total: float | None, note: str = "") -> None:
            drawn.setdefault(self._label, []).append((done, total, note))

    monkeypatch.setattr("mt3_runtime.batch.batch_progress.Meter", Watched)
    (songs / "b.flac").write_bytes(bytes(3_000_000))
    assert main(["transcribe", str(songs)]) == ExitCode.OK
    assert main(["transcribe", str(songs / "a.wav"), "--overwrite"]) == ExitCode.OK
    assert [*drawn] == ["2 files", "a.wav"]
    done, total, note = drawn["2 files"][-1]
    assert done == total == 3.000001
    assert note.startswith("2/2 files, ")
    assert drawn["a.wav"] == [(1.0, 2.0, "1 notes")]


def test_without_rich_there_is_no_bar(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Meter("song.wav", unit="s") as meter:
        meter.update(1.0, 2.0)
    assert capsys.readouterr().err == ""
