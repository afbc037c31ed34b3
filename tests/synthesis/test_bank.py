"""Banks: single sounds in, one file out, and the same file for the same sources."""

from __future__ import annotations

import io
import json
import tarfile
import types

import numpy as np
import pytest

from mt3_runtime.errors import AudioError, BundleError, MissingDependencyError, OptionError
from mt3_synthesis import bank as banks
from mt3_synthesis import rendering, soundfonts
from mt3_synthesis.bank import Bank, BankSpec, Shot, assemble, build_bank, load_bank
from mt3_synthesis.rendering import DRUM_KIT, SAMPLE_RATE, Request, Sound
from mt3_synthesis.soundfonts import Role, SamplePackage, SoundSource, find, source_named
from tests import needs
from tests.synthesis.sounds import drum, hertz_of, note, tiny_bank, tone

SMALL = BankSpec(programs=(0, 40), drum_keys=(36, 38), pitch_step=12, seconds=1.0)


def test_sounds_become_rows_of_an_index():
    bank = assemble(
        "two",
        [
            Sound(40, 70, 100, tone(70, 0.5)),
            Sound(0, 60, 100, tone(60, 0.5)),
            Sound(0, 60, 50, tone(60, 0.5) * 0.1),
            Sound(0, 61, 50, np.zeros(9000, np.float32)),  # silent: left out
        ],
        meta={"licence": "none"},
    )
    shots = [Shot(*row) for row in bank.index.tolist()]
    assert [shot[:3] for shot in shots] == [(0, 60, 50), (0, 60, 100), (40, 70, 100)]
    assert bank.instruments == [0, 40]
    assert bank.shots(40) == shots[2:]
    assert bank.audio.dtype == np.int16
    covered = np.zeros(len(bank.audio), bool)
    for shot in shots:
        covered[shot.start : shot.start + shot.length] = True
        guards = [*range(shot.start - 2, shot.start), *range(shot.start + shot.length, 2)]
        assert not bank.audio[guards].any()
    assert not bank.audio[~covered].any()
    assert hertz_of(bank.audio[shots[2].start :][:7000].astype(np.float32)) == pytest.approx(
        466.16, abs=0.5
    )


def test_instruments_are_brought_to_one_level_and_layers_keep_theirs():
    quiet = [Sound(0, 60 + i, v, tone(60 + i, 1.0) * v / 9e4) for i in range(3) for v in (50, 100)]
    loud = [Sound(40, 60, 100, tone(60, 1.0) * 0.9)]
    bank = assemble("levels", [*quiet, *loud])

    def level(shot):
        return np.sqrt(np.mean((bank.audio[shot.start : shot.start + 8000] / 32767.0) ** 2))

    assert [level(s) for s in bank.shots(0) if s.velocity == 100] == pytest.approx([0.1] * 3, 0.02)
    assert [level(s) for s in bank.shots(0) if s.velocity == 50] == pytest.approx([0.05] * 3, 0.02)
    assert level(bank.shots(40)[0]) == pytest.approx(0.1, 0.02)


def test_short_peaks_do_not_clip():
    click = 0.01 * tone(60, 0.5)
    click[20:60] = 0.5
    assert 32000 < assemble("click", [Sound(DRUM_KIT, 36, 100, click)]).audio.max() <= 32767


def test_a_bank_of_nothing_is_refused():
    with pytest.raises(OptionError, match="silent"):
        assemble("nothing", [Sound(0, 60, 100, np.zeros(9000, np.float32))])


def test_silence_around_a_sound_is_cut_off():
    sound = np.concatenate([np.zeros(500), tone(60, 0.2), np.zeros(3000)]).astype(np.float32)
    kept = rendering.trimmed(sound)
    assert 460 <= len(sound) - 3000 - len(kept) <= 500
    assert len(kept) < 3300
    assert abs(kept[-1]) < 1e-6
    slow = np.linspace(0, 1, 16000, dtype=np.float32) ** 4 * tone(60, 1.0)
    assert len(rendering.trimmed(slow)) >= 16000 - rendering.LONGEST_DELAY * SAMPLE_RATE - 2
    assert not len(rendering.trimmed(np.zeros(100, np.float32)))
    assert not len(rendering.trimmed(np.zeros(0, np.float32)))


def test_a_bank_is_read_as_it_was_written(tmp_path):
    bank = tiny_bank()
    bank.save(tmp_path / "bank.npz")
    read = load_bank(tmp_path / "bank.npz")
    assert read.name == "tiny"
    assert dict(read.meta) == dict(bank.meta)
    np.testing.assert_array_equal(read.audio, bank.audio)
    np.testing.assert_array_equal(read.index, bank.index)


def test_a_compressed_bank_is_small_and_close(tmp_path):
    needs.package("soundfile")
    bank = assemble("some", [Sound(0, p, 100, tone(p, 1.0, decay=2.0)) for p in range(40, 100, 3)])
    bank.save(tmp_path / "bank.npz", vorbis=True)
    read = load_bank(tmp_path / "bank.npz")
    assert (tmp_path / "bank.npz").stat().st_size < bank.audio.nbytes / 5
    assert len(read.audio) == len(bank.audio)
    noise = read.audio.astype(float) - bank.audio
    assert np.mean(noise**2) < 0.01 * np.mean(bank.audio.astype(float) ** 2)


@pytest.mark.parametrize("damage", ["cut", "text", "flip", "version", "missing"])
def test_a_damaged_bank_is_refused(tmp_path, damage):
    path = tmp_path / "bank.npz"
    bank = tiny_bank()
    bank.save(path)
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "text":
        path.write_text("no bank")
    elif damage == "missing":
        path.unlink()
    else:
        with np.load(path) as archive:
            stored = dict(archive)
        meta = json.loads(str(stored["meta"]))
        if damage == "version":
            meta["version"] = 2
            stored["meta"] = np.array(json.dumps(meta))
        else:
            stored["audio"][1000] ^= 1
        np.savez(path, **stored)
    with pytest.raises(BundleError, match="build it again"):
        load_bank(path)


def test_other_archives_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", meta=np.array("[]"), index=np.zeros(1), audio=np.zeros(1))
    with pytest.raises(BundleError, match="not a sample bank"):
        load_bank(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "wrong",
    [{"programs": (128,)}, {"velocities": ()}, {"pitch_step": 13}, {"seconds": 0.0}],
)
def test_impossible_specs_are_refused(wrong):
    with pytest.raises(OptionError):
        BankSpec(**wrong)


def test_the_pitches_of_a_spec_cover_the_range_of_the_instrument():
    assert list(BankSpec(pitch_step=12).pitches(40)) == [55, 67, 79, 91, 103]
    for program in BankSpec().programs:
        assert len(BankSpec().pitches(program)) > 8


# --- synthesiser ---------------------------------------------------------------------------------


class FakeSynth:
    """Sines instead of a soundfont; has program 0 and drums only."""

    def __init__(self, samplerate):
        self.rate, self.note, self.left, self.played = samplerate, None, 0, []

    def sfload(self, data):
        if data == b"broken":
            raise RuntimeError("could not load")
        return 3

    def sfpreset_name(self, font, bank, program):
        return "x" if (font, bank, program) in ((3, 0, 0), (3, 128, 0)) else None

    def program_select(self, channel, font, bank, program, is_drums):
        self.selected = (channel, bank, program, is_drums)

    def sounds_off(self):
        self.note, self.left = None, 1000

    def noteon(self, channel, key, velocity):
        self.note = (key, velocity)
        self.played.append((channel, key, velocity, self.left))

    def noteoff(self, channel, key):
        self.note = None

    def generate(self, count):
        self.left = max(0, self.left - count)
        stereo = np.zeros((count, 2), np.float32)
        if self.note:
            key, velocity = self.note
            hertz = 440 * 2 ** ((key - 69) / 12)
            stereo[:, 0] = np.sin(2 * np.pi * hertz * np.arange(count) / self.rate) * velocity / 127
            stereo[:, 1] = stereo[:, 0] / 2
        elif self.left:
            stereo += 0.1
        return stereo.tobytes()


@pytest.fixture
def synth(monkeypatch):
    needs.package("soxr")
    made = []
    real = rendering.importlib.import_module

    def make(samplerate):
        made.append(FakeSynth(samplerate))
        return made[-1]

    module = types.SimpleNamespace(Synth=make, SoundFontException=KeyError)
    monkeypatch.setattr(
        rendering.importlib,
        "import_module",
        lambda name: module if name == "tinysoundfont" else real(name),
    )
    return made


def test_a_soundfont_is_played_note_by_note_from_silence(synth):
    requests = [Request(0, 60, 100, 0.5), Request(7, 60, 100, 0.5), Request(DRUM_KIT, 38, 80, 0.2)]
    sounds = list(rendering.play_soundfont(b"font", requests))
    assert [sound[:3] for sound in sounds] == [(0, 60, 100), (DRUM_KIT, 38, 80)]
    assert synth[0].played == [(0, 60, 100, 0), (9, 38, 80, 0)]
    assert [len(sound.samples) for sound in sounds] == [8000, 3200]
    assert hertz_of(sounds[0].samples) == pytest.approx(261.6, abs=0.5)
    assert np.abs(sounds[0].samples[100:-100]).max() == pytest.approx(0.75 * 100 / 127, 0.02)


def test_notes_are_played_together_each_until_its_end(synth):
    notes = [
        note(0.1, 0.4, 69),
        note(0.5, 0.6, 57),
        drum(0.7, 38),
        note(0.1, 0.4, 64, program=7),  # nobody plays it
    ]
    levels = {0: -6.0, DRUM_KIT: 0.0}
    audio = rendering.play_notes(b"font", notes, seconds=1.0, rate=16000, levels=levels)
    assert len(audio) == 16000
    assert [call[:2] for call in synth[0].played] == [(0, 69), (0, 57), (9, 38)]
    assert hertz_of(audio[1700:6300]) == pytest.approx(440.0, abs=2.0)
    assert np.abs(audio[1700:6300]).max() == pytest.approx(0.75 * 100 / 127 / 2, rel=0.02)
    assert np.abs(audio[6500:7900]).max() < 1e-2
    assert np.abs(audio[11300:15900]).max() == pytest.approx(0.75 * 100 / 127, rel=0.02)


def test_a_broken_soundfont_is_refused(synth):
    with pytest.raises(AudioError, match="install it again"):
        list(rendering.play_soundfont(b"broken", []))


def test_a_missing_synthesiser_says_how_to_install_it(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(rendering.importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match="pip install"):
        list(rendering.play_soundfont(b"", []))


# --- recorded notes ------------------------------------------------------------------------------


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def wav(pitch: float, rate: int = 44100) -> bytes:
    soundfile = needs.package("soundfile")
    buffer = io.BytesIO()
    time = np.arange(2 * rate) / rate
    sine = np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
    soundfile.write(buffer, np.stack([sine, sine], 1) * 0.5, rate, format="WAV")
    return buffer.getvalue()


def test_recorded_notes_are_read_from_an_npm_archive():
    data = archive(
        {
            "audio/A4v8.wav": wav(69),
            "D#3.wav": wav(51),
            "Fs2.wav": wav(42, 22050),
            "README.md": b"#",
            "B9-extra.wav": b"",
        }
    )
    package = SamplePackage("x", "1", 33, 77)
    sounds = list(rendering.read_archive(data, package, seconds=1.0))
    assert [sound[:3] for sound in sounds] == [(33, 69, 77), (33, 51, 77), (33, 42, 77)]
    for sound in sounds:
        assert len(sound.samples) == SAMPLE_RATE
        assert hertz_of(sound.samples) == pytest.approx(440 * 2 ** ((sound.pitch - 69) / 12), 0.01)


@pytest.mark.parametrize("data", [b"no archive", archive({"A4.wav": b"no audio"})])
def test_a_broken_archive_is_refused(data):
    needs.package("soundfile")
    with pytest.raises(AudioError, match="fetch it again"):
        list(rendering.read_archive(data, SamplePackage("x", "1", 0), seconds=1.0))


# --- cache ---------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(soundfonts, "FONT_FOLDERS", (tmp_path,))
    monkeypatch.setattr(soundfonts, "sources_dir", lambda: tmp_path)
    (tmp_path / "font.sf2").write_bytes(b"font")
    return SoundSource("fake", Role.TRAIN, "MIT", "nobody", package="p", files=("font.sf2",))


def test_a_bank_is_rendered_once(synth, source, tmp_path):
    first = build_bank(source, SMALL, folder=tmp_path / "banks")
    again = build_bank(source, SMALL, folder=tmp_path / "banks")
    assert len(synth) == 1
    np.testing.assert_array_equal(first.audio, again.audio)
    assert first.instruments == [0, DRUM_KIT]
    assert first.meta["licence"] == "MIT"
    assert list(first.meta["files"]) == ["font.sf2"]
    assert len(first.meta["files"]["font.sf2"]) == 64
    (path,) = (tmp_path / "banks").iterdir()
    assert path.name.startswith("fake-")


def test_another_font_or_spec_gives_another_bank(synth, source, tmp_path):
    build_bank(source, SMALL, folder=tmp_path / "banks")
    build_bank(source, BankSpec(programs=(0,), drum_keys=()), folder=tmp_path / "banks")
    (tmp_path / "font.sf2").write_bytes(b"another font")
    build_bank(source, SMALL, folder=tmp_path / "banks")
    assert len(list((tmp_path / "banks").iterdir())) == 3


def test_a_damaged_cache_is_noticed(synth, source, tmp_path):
    build_bank(source, SMALL, folder=tmp_path / "banks")
    (path,) = (tmp_path / "banks").iterdir()
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(BundleError, match="build it again"):
        build_bank(source, SMALL, folder=tmp_path / "banks")


def test_a_bank_of_recorded_notes(tmp_path, monkeypatch):
    package = SamplePackage("@a/piano", "1.0", 0, 80)
    monkeypatch.setattr(soundfonts, "sources_dir", lambda: tmp_path)
    monkeypatch.setattr(banks, "calibration_dir", lambda: tmp_path / "cache")
    (tmp_path / package.archive).write_bytes(archive({"A4v8.wav": wav(69), "C5v8.wav": wav(72)}))
    source = SoundSource("notes", Role.TEST, "CC-BY-3.0", "somebody", samples=(package,))
    bank = build_bank(source)
    assert [(shot.pitch, shot.velocity) for shot in bank.shots(0)] == [(69, 80), (72, 80)]
    assert (tmp_path / "cache" / "banks").is_dir()


@pytest.mark.parametrize("name", ["fluidr3mono", "timgm6mb"])
def test_a_real_soundfont(name):
    needs.package("tinysoundfont", "soundfonts")
    try:
        (path,) = find(source_named(name))
    except MissingDependencyError as error:
        needs.missing("soundfonts", str(error))
    requests = [Request(program, 69, 100, 1.0) for program in (0, 16, 73)]
    requests.append(Request(DRUM_KIT, 38, 100, 0.5))
    sounds = list(rendering.play_soundfont(path.read_bytes(), requests))
    assert [sound.instrument for sound in sounds] == [0, 16, 73, DRUM_KIT]
    bank = assemble(name, sounds)
    for program in (0, 16, 73):
        (shot,) = bank.shots(program)
        found = hertz_of(bank.audio[shot.start :][: min(shot.length, 12000)].astype(np.float32))
        octaves = np.log2(found / 440.0)
        assert abs(octaves - round(octaves)) < 0.02
    assert isinstance(bank, Bank)
