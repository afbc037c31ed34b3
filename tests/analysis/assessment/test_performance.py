import warnings

import mido
import numpy as np
import pytest

from mt3_analysis.assessment.performance import SUSTAIN, Performance
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.note import Note
from mt3_runtime.transcription import Transcription


def write(path, events, *, division=480, tempi=(500_000,)):
    """A MIDI file of (tick, message) pairs."""
    track, now = mido.MidiTrack(), 0
    changes = [(240 * i, mido.MetaMessage("set_tempo", tempo=t)) for i, t in enumerate(tempi)]
    for tick, message in sorted([*changes, *events], key=lambda item: item[0]):
        track.append(message.copy(time=tick - now))
        now = tick
    mido.MidiFile(type=0, ticks_per_beat=division, tracks=[track]).save(path)
    return path


def note(tick, length, pitch, velocity=64, channel=0):
    on = mido.Message("note_on", note=pitch, velocity=velocity, channel=channel)
    return [(tick, on), (tick + length, mido.Message("note_off", note=pitch, channel=channel))]


def pedal(tick, value, control=64):
    return [(tick, mido.Message("control_change", control=control, value=value))]


def test_notes_and_pedals_of_a_file(tmp_path):
    events = [*note(480, 480, 64, 50), *note(480, 240, 60, 70), *note(0, 480, 62, 60)]
    events += [*pedal(100, 127), *pedal(580, 0), *pedal(700, 90, control=67), *pedal(710, 0, 67)]
    take = Performance.from_midi(write(tmp_path / "take.mid", events))
    assert take.pitch.tolist() == [62, 60, 64]
    assert take.velocity.tolist() == [60, 70, 50]
    np.testing.assert_allclose(take.onset_s, [0.0, 0.5, 0.5])
    np.testing.assert_allclose(take.offset_s, [0.5, 0.75, 1.0])
    assert take.onset_s.dtype == take.offset_s.dtype == np.float64
    assert set(take.pedals) == {64, 67}
    np.testing.assert_allclose(take.pedals[SUSTAIN].presses(9.0), [[100 / 960, 580 / 960]])
    assert take.sustain.is_down(np.array([0.0, 0.2, 0.9])).tolist() == [False, True, False]
    assert take.known == {"velocity", "pedal"}
    assert not take.on_grid
    assert take.duration_s == pytest.approx(1.0)


def test_one_velocity_says_nothing_of_dynamics(tmp_path):
    events = [each for i in range(40) for each in note(480 * i + i % 7 * 3, 200, 60 + i % 12, 127)]
    assert Performance.from_midi(write(tmp_path / "a.mid", events)).known == frozenset()


def test_a_pedal_that_does_not_move_is_not_known(tmp_path):
    events = [*note(0, 480, 60), *pedal(0, 0), *pedal(10, 0)]
    take = Performance.from_midi(write(tmp_path / "a.mid", events))
    assert "pedal" not in take.known
    assert take.sustain is None


def test_a_pedal_that_is_never_lifted_ends_with_the_notes(tmp_path):
    events = [*note(0, 480, 60), *pedal(0, 0), *pedal(96, 100)]
    take = Performance.from_midi(write(tmp_path / "a.mid", events))
    np.testing.assert_allclose(take.sustain.presses(0.5), [[0.1, 0.5]])
    assert any("never lifted" in remark for remark in take.remarks)


def test_drums_and_other_instruments_are_left_out_with_a_word(tmp_path):
    change = mido.Message("program_change", program=40, channel=1)
    events = [(0, change), *note(0, 480, 60), *note(0, 480, 38, channel=9)]
    events += note(0, 480, 72, channel=1)
    take = Performance.from_midi(write(tmp_path / "band.mid", events))
    assert take.pitch.tolist() == [60]
    assert [r.split()[0] for r in take.remarks] == ["1", "1"]
    assert "drums" in take.remarks[0]
    assert "other instruments" in take.remarks[1]


def test_a_violin_alone_is_taken_with_a_word(tmp_path):
    change = mido.Message("program_change", program=40, channel=1)
    take = Performance.from_midi(
        write(tmp_path / "a.mid", [(0, change), *note(0, 9, 72, channel=1)])
    )
    assert len(take) == 1
    assert "No piano" in take.remarks[0]


def test_only_drums_leave_nothing(tmp_path):
    take = Performance.from_midi(write(tmp_path / "a.mid", note(0, 480, 38, channel=9)))
    assert len(take) == 0
    assert take.duration_s == 0.0


def test_overlaps_of_one_pitch_are_cut_and_empty_notes_counted():
    take = Performance.from_arrays([0.0, 1.0, 2.0], [1.5, 2.0, 2.0], pitch=[60, 60, 61])
    assert take.offset_s.tolist() == [1.0, 2.0, 2.0]
    assert "overlap" in take.remarks[0]
    assert "no length" in take.remarks[1]


def test_written_notes_are_told_from_played_ones(tmp_path):
    rng = np.random.default_rng(5)
    ticks = np.cumsum(rng.choice([120, 240, 480], 100))
    written = [each for t in ticks for each in note(int(t), 100, 60 + int(t) % 12)]
    played = [each for t in ticks for each in note(int(t + rng.integers(-30, 30)), 90, 60)]
    assert Performance.from_midi(write(tmp_path / "a.mid", written)).on_grid
    assert not Performance.from_midi(write(tmp_path / "b.mid", played)).on_grid
    mapped = write(tmp_path / "c.mid", written, tempi=[500_000 + 999 * i for i in range(50)])
    take = Performance.from_midi(mapped)
    assert not take.on_grid
    assert "tempo changes" in take.remarks[-1]
    on = 0.3 * np.arange(60)
    assert Performance.from_arrays(on, on + 0.2, pitch=[60] * 60).on_grid
    loose = on + rng.normal(0.0, 0.02, 60)
    loose -= loose.min()
    assert not Performance.from_arrays(loose, loose + 0.2, pitch=[60] * 60).on_grid


def test_a_transcription_and_arrays_give_the_same():
    notes = (Note(0.1, 0.5, 60, 40), Note(0.2, 0.7, 64, 90))
    made = Transcription(notes, (), 1.0, "tiny", "")
    take = Performance.from_transcription(made)
    same = Performance.from_arrays([0.2, 0.1], [0.7, 0.5], pitch=[64, 60], velocity=[90, 40])
    for name in ("onset_s", "offset_s", "pitch", "velocity"):
        np.testing.assert_array_equal(getattr(take, name), getattr(same, name))
    assert take.known == same.known == {"velocity"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"offset_s": [1.0]}, "values"),
        ({"onset_s": [2.0, 0.0]}, "span"),
        ({"onset_s": [np.nan, 0.0]}, "finite"),
        ({"pitch": [60, 128]}, "pitch"),
        ({"velocity": [0, 64]}, "velocity"),
        ({"pedals": {64: [(0.0, 200)]}}, "pedal 64"),
        ({"pedals": {64: "down"}}, "pedal 64"),
        ({"pitch": "C4"}, "pitch"),
    ],
)
def test_arrays_that_are_none_are_refused(values, words):
    sound = {"onset_s": [0.0, 0.5], "offset_s": [1.0, 1.5], "pitch": [60, 64]}
    with pytest.raises(OptionError, match=words):
        Performance.from_arrays(**(sound | values))


def test_a_file_that_is_too_long_is_refused(tmp_path):
    events = [*note(0, 480, 60), *note(960 * 36_000, 480, 60)]
    with pytest.raises(OptionError, match=r"10\.0 hours"):
        Performance.from_midi(write(tmp_path / "night.mid", events))


def test_what_is_no_midi_file_is_refused(tmp_path):
    (tmp_path / "a.mid").write_bytes(b"RIFF")
    for name in ("a.mid", "none.mid", "."):
        with pytest.raises(OptionError):
            Performance.from_midi(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = mido.MidiFile(type=0, tracks=[mido.MidiTrack()])
        empty.save(tmp_path / "empty.mid")
        assert len(Performance.from_midi(tmp_path / "empty.mid")) == 0
