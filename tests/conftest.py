"""What many tests share: the tiny seeded bundle, the real weights and recordings where present."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
from filelock import FileLock

from mt3_export.bundle_writer import export_bundle
from mt3_export.checkpoints.checkpoint import read_checkpoint
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.models import catalogue, shipped
from tests import needs
from tests.pace import HANGS
from tests.seeded import seeded_normal, seeded_weights

#: Runs a program in another environment, by its arguments, and returns what it printed.
Beside = Callable[..., str]

# How long an example takes says something about the machine, and nothing about the code.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


def pytest_configure() -> None:
    """Checks ``MT3_REQUIRE``; lets processes in other folders import what this one imports."""
    needs.required()
    if folders := os.environ.get("PYTHONPATH"):
        absolute = [str(Path(folder).resolve()) for folder in folders.split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(absolute)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names bytes by their argument, because files that libraries write hold the time of day.

    pytest-xdist refuses workers that collect tests of different names.
    """
    return argname if isinstance(val, bytes | bytearray) else None


#: What costs minutes and is kept in memory: all that needs it runs in one worker.
WHOLE_RECORDINGS = {"greedy_runs", "t5x_runs"}

#: Shares that take minutes, the longest first; the others fill up what is left.
LONG = ("recordings", "test_docker.py", "test_bad_input.py")


def share_of(item: pytest.Item) -> str:
    """Which tests go to one worker together: those of a file, and all on whole recordings."""
    fixtures = set(getattr(item, "fixturenames", ()))
    whole = item.path.parent.name == "parity" and bool(WHOLE_RECORDINGS & fixtures)
    return "recordings" if whole else item.path.relative_to(needs.ROOT).as_posix()


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shares out the tests for ``--dist loadgroup``, where there are several workers."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        item.add_marker(pytest.mark.xdist_group(share_of(item)))
    names = {item: share_of(item).rpartition("/")[2] for item in items}
    ranks = {item: LONG.index(n) if n in LONG else len(LONG) for item, n in names.items()}
    items.sort(key=ranks.__getitem__)


@pytest.fixture(scope="session")
def made_once(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes what costs something once for all workers: ``made_once(name, make)`` is a path.

    ``make`` gets the path of that name, in an empty folder; tests must not change what it makes.
    """
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # a worker's folder lies in that of the whole run
        root = root.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / "made once" / name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=HANGS):
            if not folder.exists():
                part = folder.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                make(part / name)
                part.rename(folder)
        return folder / name

    return made


def _beside(python: str, *before: str) -> Beside:
    """Runs programs with another Python, which finds our sources, and fails with what they say."""
    project = tomllib.loads((needs.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    folders = dict.fromkeys(str((needs.ROOT / package).parent) for package in packages)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    environment = inherited | {"PYTHONPATH": os.pathsep.join([*folders, str(needs.ROOT)])}

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [python, *before, *map(str, arguments)],
            env=environment,
            cwd=needs.ROOT,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def beside_torch(pytestconfig: pytest.Config) -> Beside:
    """Runs programs in the environment that has PyTorch, and measures them if this run is measured.

    pytest-cov adds all data files that lie beside its own when it ends.
    """
    python = needs.python_of("torch")
    if not pytestconfig.getoption("cov_source", None):
        return _beside(python)
    data = pytestconfig.invocation_params.dir / ".coverage"
    settings = needs.ROOT / "pyproject.toml"
    measure = ("run", "--parallel-mode", f"--data-file={data}", f"--rcfile={settings}")
    return _beside(python, "-m", "coverage", *measure)


@pytest.fixture(scope="session")
def beside_jax2tf() -> Beside:
    """Runs programs in the environment that has JAX and TensorFlow."""
    return _beside(needs.python_of("jax2tf"))


@pytest.fixture(scope="session")
def tiny_weights() -> Weights:
    """The small network most tests run.

    Of forty seeds this one says most: on `audio` its segments have 57 to 159 tokens and 20 notes.
    """
    return seeded_weights(seed=21)


@pytest.fixture(scope="session")
def tiny_bundle(made_once, tiny_weights: Weights) -> Path:
    """A bundle of the small network with all profiles; tests must not change it."""
    return made_once(
        "tiny",
        lambda path: export_bundle(
            tiny_weights,
            variant_named("magenta_mt3"),
            path,
            source={"layout": "seeded", "digest": "0" * 64},
            profiles=("cpu", "portable", "compat"),
            name="tiny",
        ),
    )


@pytest.fixture
def tiny_model(tiny_bundle: Path) -> Model:
    """The small network, loaded."""
    return load_model(tiny_bundle)


@pytest.fixture(scope="session")
def audio() -> npt.NDArray[np.float32]:
    """Nine seconds (five segments) of deterministic noise and tones at 16 kHz: float32 [n]."""
    time = np.arange(9 * 16000) / 16000
    tones = sum(np.sin(2 * np.pi * f * time * (1 + 0.01 * time)) for f in (110.0, 331.0, 1507.0))
    noise = seeded_normal("audio", (len(time),))
    return np.asarray(0.1 * tones + 0.05 * noise, np.float32)


@pytest.fixture
def nothing_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A package that was built without weights."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "no data")
    forget = catalogue.list_models.cache_clear  # a test may put something else in its place
    forget()
    yield
    forget()


@pytest.fixture(scope="session")
def default_bundle() -> Path:
    """The model that comes with the package; skips where it was built without."""
    models = shipped.shipped_models()
    if not models:
        needs.missing("default-model", f"there is none in {shipped.FOLDER}")
    return models[shipped.DEFAULT]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real weights and recordings; skips where there is none."""
    return needs.shared_folder()


@pytest.fixture(scope="session")
def real_weights(shared: Path) -> Weights:
    """Magenta's published MT3 weights."""
    return read_checkpoint(shared / "checkpoints" / "magenta_mt3").weights


@pytest.fixture(scope="session")
def real_bundle(made_once, shared: Path) -> Path:
    """Magenta's MT3 as a bundle with all profiles."""

    def export(path: Path) -> None:
        contents = read_checkpoint(shared / "checkpoints" / "magenta_mt3")
        export_bundle(
            contents.weights,
            variant_named("magenta_mt3"),
            path,
            source={"layout": contents.layout, "digest": contents.digest},
            profiles=("cpu", "portable", "compat"),
        )

    return made_once("magenta_mt3", export)
