"""The runtime in JavaScript says what this one says: features, tokens, notes, MIDI files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.single_file import export_single_file
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.loading import load_model
from mt3_runtime.models.shipped import shipped_models
from mt3_runtime.transcription import Transcription
from tests import needs
from tests.pace import HANGS
from tests.web import vectors

RATE = 16000
WEB = needs.ROOT / "runtime" / "web"
EXAMPLES = needs.ROOT / "examples"
DEMO = needs.ROOT / "calibration" / "demo" / "demo.flac"

Node = Callable[..., str]


def _run(*command: object, **how: Any) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
        **how,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def node() -> Node:
    program = needs.tool("node")
    return lambda script, *arguments: _run(
        program, Path(__file__).with_name(script), *arguments, cwd=needs.ROOT
    )


def _shipped() -> Path:
    if "default" not in shipped_models():
        needs.missing("default-model", "the package was built without it")
    return shipped_models()["default"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as one graph."""
    path = tmp_path_factory.mktemp("single") / "model"
    export_single_file(Bundle(_shipped()), path)
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo recording as the examples read it."""
    path = tmp_path_factory.mktemp("demo") / "demo.wav"
    samples = load_audio(DEMO, target_rate=RATE)
    whole = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(whole.tobytes())
    return path


@pytest.fixture(scope="module")
def heard(demo: Path) -> tuple[list[list[int]], Transcription]:
    """Tokens of the demo's segments, and what it is transcribed to."""
    with load_model(_shipped(), device="cpu") as model:
        tokens = [s.tokens.tolist() for s in model.forward(model.preprocess(demo))]
        return tokens, model.transcribe_notes(demo, auto_filter=False)


def _midi(result: Transcription) -> bytes:
    file = io.BytesIO()
    result.to_midi().save(file=file)
    return file.getvalue()


def _lines(text: str) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in text.splitlines()]


def test_the_vectors_are_those_of_this_code() -> None:
    assert vectors.PATH.read_text(encoding="utf-8") == vectors.text()


def test_notes_and_midi_files_are_those_of_the_vectors(node: Node) -> None:
    assert "10 cases" in node("notes.mjs")


def test_a_graphics_processor_is_checked(node: Node) -> None:
    """Decoders made by hand: equal ones are trusted, others and broken ones are not."""
    assert node("checked.mjs") == "checked\n"


def test_features_are_those_of_the_runtime(node: Node, tmp_path: Path) -> None:
    variant = variant_named("magenta_mt3")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(
        json.dumps({"features": variant.features.to_dict(), "segments": variant.segments.to_dict()})
    )
    random = np.random.default_rng(3)
    noise = random.normal(0, 0.1, 70000)
    spectrum = np.fft.rfft(noise)
    spectrum[len(spectrum) // 3 :] = 0  # as an encoder leaves it
    quiet = np.concatenate([np.fft.irfft(spectrum, 70000), np.zeros(3000), noise[:5001]])
    samples = quiet.astype(np.float32)
    samples.tofile(tmp_path / "samples")
    node("features.mjs", manifest, tmp_path / "samples", tmp_path / "out")
    from mt3_runtime.audio.log_mel import FeatureExtractor
    from mt3_runtime.audio.segments import cut

    extractor = FeatureExtractor(variant.features)
    expected = np.stack([extractor(s.samples) for s in cut([samples], variant.segments)])
    found = np.fromfile(tmp_path / "out", np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_types_hold() -> None:
    compiler = needs.node_modules() / ".bin" / "tsc"
    _run(compiler, "-p", WEB)


def test_modules_are_short() -> None:
    lengths = {
        path.relative_to(WEB).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in WEB.rglob("*.js")
        if not {"node_modules", "vendor"} & set(path.parts)
    }
    assert sum(lengths.values()) < 5000
    assert {path for path, length in lengths.items() if length > 400} == set()


def test_the_package_packs_what_it_needs(tmp_path: Path) -> None:
    npm = needs.tool("npm", "node")
    _run(npm, "pack", "--ignore-scripts", "--pack-destination", tmp_path, cwd=WEB)
    (packed,) = tmp_path.glob("*.tgz")
    with tarfile.open(packed) as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
    modules = {path.relative_to(WEB).as_posix() for path in (WEB / "src").glob("*.js")}
    assert modules | {"package.json", "README.md", "vectors.json"} <= names
    assert not any("node_modules" in name for name in names)


def test_the_example_in_python(single: Path, demo: Path, heard) -> None:
    written = _run(sys.executable, EXAMPLES / "one_graph.py", single, demo)
    assert _lines(written) == heard[0]


def test_the_example_in_python_reads_magentas_inputs(
    tiny_weights: Weights, demo: Path, tmp_path: Path
) -> None:
    source = {"layout": "seeded", "digest": "0" * 64}
    pair, out = tmp_path / "pair", tmp_path / "single"
    export_bundle(tiny_weights, variant_named("magenta_mt3"), pair, source=source)
    export_single_file(Bundle(pair), out)
    with wave.open(str(demo)) as file:
        frames = file.readframes(40000)
    with wave.open(str(tmp_path / "short.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(frames)
    with load_model(pair, device="cpu") as model:
        expected = model.forward(model.preprocess(tmp_path / "short.wav"))
    written = _run(sys.executable, EXAMPLES / "one_graph.py", out, tmp_path / "short.wav")
    assert _lines(written) == [sequence.tokens.tolist() for sequence in expected]


def test_the_example_in_cpp(single: Path, demo: Path, tmp_path: Path, heard) -> None:
    """Built against the library in ONNX Runtime's own wheel."""
    compiler = needs.tool("g++", "compiler")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    linked = tmp_path / "libonnxruntime.so.1"
    linked.symlink_to(library)
    include = Path(__file__).with_name("include")
    program = tmp_path / "one_graph"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{include}", f"-Wl,-rpath,{tmp_path}"]
    _run(compiler, *flags, EXAMPLES / "one_graph.cpp", linked, "-o", program)
    (graph,) = Bundle(single).manifest.graphs
    assert _lines(_run(program, single / graph.file, demo)) == heard[0]


def test_the_example_in_node(single: Path, demo: Path, tmp_path: Path, heard) -> None:
    """Tokens and the bytes of the MIDI file, through WebAssembly."""
    modules = needs.node_modules().parent
    written = _run(
        needs.tool("node"),
        *(EXAMPLES / "one_graph.mjs", single, demo, tmp_path / "song.mid"),
        env={"NODE_MODULES": str(modules), "PATH": "/usr/bin:/bin"},
    )
    assert _lines(written) == heard[0]
    assert (tmp_path / "song.mid").read_bytes() == _midi(heard[1])


BROWSERS = {"chromium": "chromium", "firefox": "firefox-esr"}
"""Names in `needs.NEEDS`, and programs."""


@pytest.mark.parametrize("browser", BROWSERS)
def test_in_a_browser(browser: str, node: Node, tmp_path: Path) -> None:
    """Tokens and MIDI bytes of the demo, and of the beginning of recordings where they are."""
    program = needs.tool(BROWSERS[browser], browser)
    needs.node_modules()
    export_single_file(Bundle(_shipped()), tmp_path / "model", start="features")
    recordings = {"demo": load_audio(DEMO, target_rate=RATE)}
    shared = needs.shared_folder() / "audio"
    for name in ("piano_bach.mp3", "drums_rock.flac"):
        recordings[name] = load_audio(shared / name, target_rate=RATE)[: 3 * RATE]
    files = []
    for name, samples in recordings.items():
        files.append(tmp_path / f"{name}.f32")
        samples.tofile(files[-1])
    results = node("in_browser.mjs", program, tmp_path / "model", 2, *files)
    found = [json.loads(line) for line in results.splitlines()]
    with load_model(_shipped(), device="cpu") as model:
        for result, samples in zip(found, recordings.values(), strict=True):
            expected = model.forward(model.preprocess(samples))
            assert result["tokens"] == [sequence.tokens.tolist() for sequence in expected]
            notes = model.transcribe_notes(samples, auto_filter=False)
            assert bytes(result["midi"]) == _midi(notes)
