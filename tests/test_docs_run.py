"""Runs every command and every Python example of README, CONTRIBUTING and docs, page by page.

A page runs in a folder of its own that has what its examples name: recordings, labels, checkpoints
and bundles of the small seeded network under the names that pages use, and the project's folders.
`mt3` and `python` run in this process, so that models load and packages import once.  A command
must end with exit code 0.  What cannot run here stands in `NOT_RUN`, with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import re
import runpy
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import soundfile

from mt3_quantisation import precision_command, qdq_command
from mt3_quantisation.gates.material import Part
from mt3_runtime.cli import main
from mt3_runtime.commands import bench_command
from mt3_runtime.files.formats import render
from mt3_runtime.models import catalogue
from mt3_runtime.models.catalogue import ModelFile
from mt3_runtime.notes.note import Note
from mt3_synthesis.soundfonts import Role
from mt3_training.performance_sets.made_performances import make_piece, play
from mt3_training.performance_sets.performance_files import midi_bytes
from tests.assessor_folders import assessors_folder
from tests.export.writers import write_kunato, write_t5x
from tests.pages import CODE, FENCE, ROOT, TEXTS, Command, blocks, commands, prose, shell_blocks
from tests.quantisation import tiny_material

#: Why something is not run -> commands as they stand in the pages, or a line of a Python example.
NOT_RUN: Mapping[str, tuple[str, ...]] = {
    "installs into the environment that runs the tests; test_packaging.py and scripts/test install"
    " the wheel": (
        "pip install '.[cpu]'",
        "pip install '.[cpu,export]'",
        "pip install '.[cpu,serve]'",
        "pip install '.[cpu,export,trt]' --extra-index-url https://pypi.nvidia.com",
        "pip install '.[rtx]'",
        "pip install '.[cpu,ray]'",
        "pip install '.[cpu,calibration,viz]'",
        "pip install '.[export,jax2tf]'",
        "pip install '.[cpu,export,calibration]'",
        "pip install '.[cpu,export,calibration,torch,viz]'",
        "pip install -e '.[cpu,formats,serve,export,calibration,viz,dev]'",
        "apt-get install csound-soundfont",
        "pip install --no-deps tinysoundfont",
    ),
    "an environment of its own, which CI makes (.ci/run, scripts/nightly)": (
        "python -m venv .venv",
        ". .venv/bin/activate",
        "python -m venv .venvs/oracle",
        ".venvs/oracle/bin/pip install torch==2.13.0",
        ".venvs/oracle/bin/pip install -r tests/parity/oracle-requirements.txt",
        ".venvs/oracle/bin/pip install --no-deps mt3-infer==0.2.0",
        "pytest tests/parity",
        "mt3 export path/to/mt3 --via jax2tf -o traced/",
        "mt3 transcribe song.wav -m traced/",
    ),
    "fetches 30 MB from the npm registry; tests/web/test_page.py runs it with what CI has": (
        "mt3 web build -o site/",
    ),
    "published weights, which every user has to get; tests/export and tests/parity run it": (
        "mt3 export yamnet.tflite",
        "mt3 export ast/",
        "mt3 export audioset.pth --labels class_labels_indices.csv",
        "mt3 export distilhubert-gtzan/",
    ),
    "needs performances with ratings, more of them, or a recording of a piano;"
    " tests/training/test_style_training.py and tests/analysis/assessment run the like": (
        "mt3 calibrate assess style PercePiano/ -o style --report style.json",
        "mt3 assess take.mid --score piece.mid --style style",
    ),
    "is the suite, or a part of it, or what follows from it": (
        "scripts/test",
        "scripts/nightly",
        "pytest tests/runtime",
        "ruff check .",
        "ruff format .",
        "mypy",
    ),
    "its exit code depends on the clock; test_bench.py and test_speed_comparison.py compare": (
        "mt3 bench song.wav -m magenta_mt3 --runs 7 --compare before.json",
    ),
    "a night, an index that serves advisories, or an environment of its own; test_fuzz_targets.py,"
    " test_audit.py, test_distributions.py and test_site.py run what they are made of": (
        "scripts/fuzz",
        "scripts/fuzz --minutes 60 audio http",
        "scripts/audit",
        "scripts/distributions",
    ),
    "minutes on a quiet machine, with published weights and recordings": (
        "python benchmarks/readme.py --write",
        "python benchmarks/recordings.py",
        "python benchmarks/song.py",
        "python benchmarks/decoder_step.py",
        "python benchmarks/cold_start.py --peer",
        "python benchmarks/memory.py",
        "python benchmarks/stored_weights.py",
        "python benchmarks/many.py",
        "python benchmarks/batch_kills.py",
        "python benchmarks/reading.py",
        "python benchmarks/serve.py",
        "python benchmarks/engine.py",
        "python benchmarks/engine_memory.py",
        "python benchmarks/mr_mt3.py",
        "python benchmarks/constraints.py",
        "python benchmarks/yourmt3.py",
        "python benchmarks/default_model.py",
        "python benchmarks/precisions.py --other fast/",
        "python benchmarks/precisions.py --bundle exact/ --other fast/ --other small/",
        "python benchmarks/operators.py --other fast/",
        "python benchmarks/plugins.py --other fast/",
        "python benchmarks/routes.py",
    ),
    "goes on until somebody ends it; tests/server starts and ends it": ("mt3 serve",),
    "asks a service that runs; tests/server/test_serving_page.py": (
        "from websockets.sync.client import connect",
    ),
    "needs a Triton server, a Ray cluster, or minutes; scripts/nightly triton ray runs the like": (
        'client = grpc.InferenceServerClient("127.0.0.1:8001")',
        "from mt3_server.ray import transcribe_files",
        "from mt3_server.ray import service",
        "python benchmarks/scale_out.py",
        "python benchmarks/million.py",
    ),
    "goes on until somebody ends it; test_batch.py does": (
        "mt3 transcribe songs/ -o out/ --watch",
    ),
    "hours, with PyTorch and large soundfonts; tests/training runs it on little": (
        "mt3 calibrate train runs/small --nice 15 --threads 2",
        "mt3 calibrate export runs/small -o small.mt3",
        "mt3 calibrate train RUN --config calibration/default/config.json",
        "mt3 calibrate export RUN -o first",
        "mt3 calibrate train-per-stem models --stems drums,bass --steps 2000 --nice 15",
        "python benchmarks/specialists.py out --stems drums,piano,bass,synth_pad_fx --steps 2000",
        "mt3 evaluate TRUST --labels TRUST -m first --no-auto-filter --confidence --json fit.json",
        "python -m mt3_training.shipping.ship RUN --confidence fit.json",
        "python benchmarks/default_model.py --out speed.json",
        (
            "python -m mt3_training.shipping.model_card RUN --board board.json --speed speed.json"
            " -o docs"
        ),
    ),
    "minutes, with the sounds of a collection; tests/evaluation runs it on little": (
        "python benchmarks/per_stem.py",
    ),
    "a data set of a hundred gigabytes; tests/training reads a song of it, and made-up ones": (
        "mt3 calibrate index slakh/ --dataset slakh -o indices/",
        "mt3 calibrate filter indices/",
    ),
    "minutes, or trained weights, which pass gates; tests/quantisation runs it on little": (
        "mt3 calibrate exact/ --precision fast -o fast/",
        "mt3 calibrate exact/ --precision small -o small/",
        "mt3 calibrate mt3/ --precision int8 --force -o mt3-int8/",
        "mt3 calibrate mt3/ --sensitivity -o report.json --plot report.png",
    ),
    "needs tinysoundfont and soundfonts; tests/synthesis and tests/evaluation run it with sounds of"
    " their own": (
        (
            "palette = Palette([build_bank(source_named(name)) for name in"
            ' ("fluidr3mono", "musescore")])'
        ),
        'made = cached_test_set(set_named("e1"))  # made.folder, made.recordings, made.digest',
        'write_test_set(set_named("trust"), Path("trust"), count=60, seconds=12.0)',
        "python -m mt3_evaluation.leakage_study.leakage_set tune sets/tune",
        (
            "python -m mt3_evaluation.leakage_study.leakage_evidence sets/tune -m right"
            " --notes sets/tune/notes"
        ),
        (
            "python -m mt3_evaluation.scoreboards.scoreboard default magenta_mt3 --final"
            " --json board.json"
        ),
        (
            "python -m mt3_evaluation.scoreboards.scoreboard default magenta_mt3 --final"
            " --json board.json --markdown board.md --plot board.png"
        ),
        (
            "python -m mt3_evaluation.scoreboards.scoreboard small.mt3 --beside board.json"
            " --sets e1,choice"
        ),
    ),
    "needs an NVIDIA GPU, most of it TensorRT, too; tests/engines runs the code on one of NumPy": (
        "python benchmarks/gpu.py",
        "python benchmarks/gpu.py --out gpu.json",
        'bundle = Bundle("magenta_mt3")',
        "mt3 build mt3/ --precision fp16 --slots 1,8,32,128,512",
        "mt3 build mt3-int8/ --precision fp16",
        "mt3 transcribe song.wav --model mt3/ --device tensorrt",
        "mt3 build default --for rtx",
        "mt3 transcribe song.wav -m default --device rtx",
        "mt3 engines inspect NAME",
        "python -m mt3_engines.verify_on_gpu default song.wav --for rtx --answers a.json -o r.md",
        "python benchmarks/gpu.py --out gpu.json --minutes 30",
        "mt3 doctor --device rtx",
        "python -m mt3_engines.verify_on_gpu mt3/ song.wav another.flac -o report.md",
        "python -m mt3_engines.verify_on_gpu mt3-fp8/ --exact mt3/ song.wav -o report.md",
    ),
    "needs Docker; test_docker.py carries out the steps, and checks how images are run": (
        "docker build -f docker/cpu.Dockerfile -t mt3:cpu .",
        "docker build -f docker/export.Dockerfile -t mt3:export .",
        "docker run --rm -v '$PWD:/work' --user '$(id -u):$(id -g)' mt3:cpu transcribe song.wav",
        "docker run --rm -v mt3-models:/models mt3:cpu models pull magenta_mt3",
        "docker run --rm -v mt3-models:/models mt3:export magenta_mt3",
        (
            "docker run --rm -v mt3-models:/models -v '$PWD:/work' --user '$(id -u):$(id -g)'"
            " mt3:cpu transcribe song.wav"
        ),
        "docker buildx imagetools inspect python:3.12-slim-bookworm",
        (
            "docker build --build-arg BASE=python:3.12-slim-bookworm@sha256:DIGEST"
            " -f docker/cpu.Dockerfile -t mt3:cpu ."
        ),
        (
            "docker build --build-arg BASE=nvcr.io/nvidia/tensorrt:25.08-py3 --build-arg"
            " 'CUDA_BINDINGS=cuda-bindings>=13,<14' -f docker/jetson.Dockerfile -t mt3:jetson ."
        ),
    ),
}

#: Left out of the pages that hold Python: their blocks are signatures, compared by test_docs.py.
SIGNATURES = ("docs/SPEC.md",)

SECONDS = 4
"""Length of every prepared recording: two segments of the small network."""


LITTLE = (Part("calibration", (Role.TRAIN,), 1, 2.0), Part("check", (Role.CHOICE,), 1, 2.0))
"""Music that bundles of other precision are made with and judged by."""


def shell_commands(page: str) -> list[Command]:
    return [command for body in shell_blocks(TEXTS[page]) for command in commands(body)]


def python_blocks(page: str) -> list[str]:
    return [] if page in SIGNATURES else blocks(TEXTS[page], "python")


def excused(item: Command | str) -> bool:
    """Whether `NOT_RUN` has a command, or a line of a Python example."""
    known = {text for several in NOT_RUN.values() for text in several}
    lines = [str(item)] if isinstance(item, Command) else item.splitlines()
    return not known.isdisjoint(lines)


RUNNABLE = [page for page in TEXTS if shell_commands(page) or python_blocks(page)]


# --- what pages find ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_bundle, tiny_weights, audio) -> Path:
    """A folder with everything that examples name."""
    folder = tmp_path_factory.mktemp("docs") / "page"
    samples = audio[: SECONDS * 16000]
    for name in (
        "song.wav", "another.flac", "concert.flac", "riff.wav", "trio.wav", "bass.wav", "drums.wav",
        "songs/song.wav", "upload.wav", "take.wav",
        "songs/other.wav", "recordings/song.wav", "recordings/drums_1.wav", "stems/bass.wav",
        "stems/drums.wav", "trust/song.wav",
    ):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, 16000)
    notes = "onset,offset,pitch,program\n0.5,1.0,60,0\n1.5,2.0,64,0\n3.0,4.0,67,0\n"
    for name in ("labels/song", "labels/drums_1", "recordings/song", "trust/song"):
        (folder / f"{name}.notes.csv").parent.mkdir(exist_ok=True)
        (folder / f"{name}.notes.csv").write_text(notes)
        (folder / f"{name}.drums.csv").write_text("onset,class\n0.5,KD\n2.0,SD\n")
    for name in ("takes", "scores"):
        (folder / name).mkdir()
    for seed in range(20):
        piece = make_piece(seed, quarters=16)
        (folder / "scores" / f"{seed}.mid").write_bytes(midi_bytes(play(piece, 0)))
        (folder / "takes" / f"{seed}.mid").write_bytes(midi_bytes(play(piece, seed + 1)))
    score = make_piece(1, quarters=32)
    (folder / "piece.mid").write_bytes(midi_bytes(play(score, 0)))
    for seed, name in enumerate(("take.mid", "other.mid"), 1):
        (folder / name).write_bytes(midi_bytes(play(score, seed)))
    (folder / "list.txt").write_text("songs/song.wav\nsongs/other.wav\n")
    assert main(["transcribe", str(folder / "song.wav"), "-m", str(tiny_bundle)]) == 0
    (folder / "transcribed").mkdir()
    minute = [Note(second, second + 0.5, 60 + second % 12, 100, 0) for second in range(60)]
    (folder / "song.json").write_bytes(render(minute, "json"))
    for name in ("song.mid", "drums_1.mid"):
        shutil.copy(folder / "song.mid", folder / "transcribed" / name)
    for name in ("exact", "BUNDLE", "cache/bundles/magenta_mt3"):
        shutil.copytree(tiny_bundle, folder / name)
    for name in ("path/to/checkpoint", "path/to/mt3", "CHECKPOINT"):
        write_t5x(folder / name, tiny_weights.tensors)
    for name in (".mt3_checkpoints/mt3_pytorch", "kunato"):
        write_kunato(folder / name, tiny_weights)
    shutil.copy(folder / "kunato" / "mt3.pth", folder)
    assessors_folder(folder / "assessors", ("gated",))
    for name in ("benchmarks", "calibration", "examples", "scripts", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def served(prepared: Path) -> Iterator[str]:
    """Address of a mirror that has the small network in the place of Magenta's checkpoint."""

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return super().translate_path(path.replace("/magenta_mt3/", "/path/to/mt3/", 1))

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(prepared))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def page_folder(prepared, served, tiny_bundle, tmp_path, monkeypatch) -> Path:
    """A copy of what is prepared, as the current folder; models are found, and fetched, there."""
    folder = tmp_path / "page"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MT3_CACHE", str(folder / "cache"))
    monkeypatch.setenv("MT3_MIRROR", served)
    for name in ("MT3_MODEL", "MT3_OFFLINE", "MT3_ENGINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(bench_command, "TEST_SECONDS", SECONDS)
    monkeypatch.setattr(tiny_material, "PARTS", LITTLE)
    known = with_small_files(prepared)
    monkeypatch.setattr(catalogue, "list_models", lambda: known)
    material = functools.cache(lambda: tiny_material.known_material(tiny_bundle))
    for module in (precision_command, qdq_command):
        monkeypatch.setattr(module, "Material", material)
    return folder


def with_small_files(prepared: Path) -> tuple[catalogue.ModelInfo, ...]:
    """The catalogue, with the small network's files and digests for `magenta_mt3`."""
    folder = prepared / "path" / "to" / "mt3"
    files = tuple(
        ModelFile(path.relative_to(folder).as_posix(), "https://host.invalid/", len(raw),
                  hashlib.sha256(raw).hexdigest())
        for path in sorted(folder.rglob("*")) if path.is_file()
        for raw in [path.read_bytes()]
    )  # fmt: skip
    return tuple(
        dataclasses.replace(model, files=files) if model.name == "magenta_mt3" else model
        for model in catalogue.list_models()
    )


# --- running --------------------------------------------------------------------------------------


def run(command: Command) -> None:
    """Runs one command as a shell would; whatever is wrong is an AssertionError."""
    words = list(command.words)
    if command.reader[:1] == ("mt3",):
        found = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(found)))
            run(Command(command.reader))
        return
    if words[:2] == ["mt3", "transcribe"]:  # the examples of a page are alternatives
        words.append("--overwrite")
    written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(written):
        code = started(words)
    written.flush()
    data = written.buffer.getvalue()
    assert code == 0, f"{command} ends with {code}"
    if command.output:
        Path(command.output).write_bytes(data)
    if command.reader:
        subprocess.run(command.reader, input=data, stdout=subprocess.DEVNULL, check=True)


def started(words: list[str]) -> int | str | None:
    """Exit code of `mt3 ...`, `python -m MODULE ...` or `python FILE ...`, in this process."""
    match words:
        case ["mt3", *arguments]:
            return main(arguments)
        case ["python", "-m", module, *arguments]:
            program = functools.partial(runpy.run_module, module, alter_sys=True)
        case ["python", file, *arguments]:
            program = functools.partial(runpy.run_path, file)
            module = file
        case _:
            raise AssertionError(f"{words[0]} cannot be run here: enter {words} in NOT_RUN")
    argv, path = sys.argv, list(sys.path)
    sys.argv = [module, *arguments]
    sys.path.insert(0, str(Path(module).parent.resolve()))
    try:
        program(run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv, sys.path[:] = argv, path
    return 0


@pytest.mark.parametrize("page", RUNNABLE)
def test_examples_of_a_page_run(page: str, page_folder: Path, capsys) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for language, body in FENCE.findall(TEXTS[page]):
        if body in shell_blocks(TEXTS[page]):
            for command in commands(body):
                if not excused(command):
                    run(command)
        elif language == "python" and page not in SIGNATURES and not excused(body):
            exec(compile(body, page, "exec"), names)  # our own page


def test_what_is_not_run_is_in_the_docs() -> None:
    there = {str(command) for page in TEXTS for command in shell_commands(page)}
    there |= {line for page in TEXTS for body in python_blocks(page) for line in body.splitlines()}
    named = [text for several in NOT_RUN.values() for text in several]
    assert len(set(named)) == len(named)
    assert set(named) <= there


def test_most_is_run() -> None:
    """A table that grows is a table that excuses."""
    every = [command for page in TEXTS for command in shell_commands(page)]
    ours = [command for command in every if command.words[0] == "mt3"]
    assert sum(map(excused, ours)) <= len(ours) / 4


# --- what is not run, as far as it can be looked at -----------------------------------------------

PROGRAMS = sorted(
    {
        (command.words[: 3 if command.words[1] == "-m" else 2], command)
        for page in TEXTS
        for command in shell_commands(page)
        if excused(command) and command.words[0] == "python" and command.words[2:3] != ("venv",)
    },
    key=str,
)


@pytest.mark.parametrize(("program", "command"), PROGRAMS, ids=str)
def test_options_of_programs_exist(program, command: Command, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    assert started([*program, "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
    assert {word for word in command.words if word.startswith("--")} <= known


def test_extras_of_install_lines_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = set(tomllib.loads(text)["project"]["optional-dependencies"])
    for page, text in TEXTS.items():
        lines = [str(command) for command in shell_commands(page)]
        for line in [*lines, *CODE.findall(prose(text))]:
            if re.match(r"pip install .*\[", line):
                (extras,) = re.findall(r"(?:\.|\.whl)\[([\w,]+)\]", line)
                assert set(extras.split(",")) <= known, f"{page}: {line}"
