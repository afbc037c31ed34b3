"""The catalogue of sounds, and how they are found."""

from __future__ import annotations

import types

import pytest

from mt3_runtime.errors import MissingDependencyError, OptionError
from mt3_runtime.models.cache import CACHE_VARIABLE
from mt3_synthesis import soundfonts
from mt3_synthesis.soundfonts import SOURCES, Role, find, source_named


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no packages."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(soundfonts, "FONT_FOLDERS", (tmp_path / "fonts",))
    monkeypatch.setattr(soundfonts.importlib.util, "find_spec", lambda name: None)
    return tmp_path


def test_every_collection_has_a_licence_an_author_and_one_use():
    names = [source.name for source in SOURCES]
    assert len(set(names)) == len(names)
    for source in SOURCES:
        assert source.licence
        assert source.credit
        assert bool(source.package) == bool(source.files) != bool(source.samples)
    assert {source.role for source in SOURCES} == set(Role)


def test_only_unconditional_licences_are_trained_on():
    for source in SOURCES:
        if source.role is Role.TRAIN:
            assert set(source.licence.split(" AND ")) <= {"MIT", "CC0-1.0"}


def test_unknown_names_are_refused_with_the_known_ones():
    assert source_named("timgm6mb").role is Role.TEST
    with pytest.raises(OptionError, match="fluidr3mono"):
        source_named("mystery")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_absent_collections_say_how_to_install_them(source, cache):
    with pytest.raises(MissingDependencyError) as caught:
        find(source)
    assert source.install in str(caught.value)
    assert ("apt-get install" if source.package else "npm pack") in source.install


def test_a_font_is_found_in_the_cache_first(cache):
    source = source_named("musescore")
    fonts = cache / "fonts"
    fonts.mkdir()
    (fonts / source.files[1]).write_bytes(b"b")
    assert find(source) == (fonts / source.files[1],)
    own = soundfonts.sources_dir()
    assert own == cache / "calibration" / "sources"
    own.mkdir(parents=True)
    (own / source.files[0]).write_bytes(b"a")
    assert find(source) == (own / source.files[0],)


def test_a_font_is_found_inside_a_python_package(cache, monkeypatch):
    (cache / "TimGM6mb.sf2").write_bytes(b"font")
    spec = types.SimpleNamespace(submodule_search_locations=[str(cache)])
    monkeypatch.setattr(
        soundfonts.importlib.util, "find_spec", lambda name: spec if name == "pretty_midi" else None
    )
    assert find(source_named("timgm6mb")) == (cache / "TimGM6mb.sf2",)


def test_samples_need_every_archive(cache):
    source = source_named("salamander")
    folder = soundfonts.sources_dir()
    folder.mkdir(parents=True)
    archives = [folder / sample.archive for sample in source.samples]
    assert archives[0].name == "audio-samples-piano-velocity5-1.0.5.tgz"
    for archive in archives:
        with pytest.raises(MissingDependencyError, match=archive.name):
            find(source)
        archive.write_bytes(b"")
    assert find(source) == tuple(archives)
