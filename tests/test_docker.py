"""The Dockerfiles: rules that every one keeps, and their steps carried out without Docker."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from mt3_runtime.cli import ExitCode
from mt3_server.serve_command import ServeCommand
from tests import needs
from tests.pace import HANGS
from tests.pages import TEXTS, shell_blocks

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVE = [path for path in FILES if path.name.startswith("serve")]


@dataclass(frozen=True)
class Step:
    """One instruction: its name and the rest, continued lines joined."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        return json.loads(self.rest)


def steps(path: Path) -> list[Step]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Step(*line.split(" ", 1)) for line in joined.splitlines() if line.strip()]


def stages(path: Path) -> tuple[list[Step], list[Step]]:
    """The steps of the stage that builds and of the one that is shipped."""
    found = steps(path)
    first, second = [number for number, step in enumerate(found) if step.name == "FROM"]
    return found[first:second], found[second:]


def only(found: list[Step], name: str) -> Step:
    (step,) = [step for step in found if step.name == name]
    return step


def command(step: Step) -> list[str]:
    """The words of a HEALTHCHECK's command."""
    return json.loads(step.rest.partition(" CMD ")[2])


def runs() -> list[tuple[str, str]]:
    """Every `docker run` of a container file's header or of a page, and where it stands."""
    texts = {path.name: path.read_text().replace("\n#", "\n") for path in FILES}
    texts |= {page: "\n".join(shell_blocks(text)) for page, text in TEXTS.items()}
    return [
        (line.strip(), where)
        for where, text in texts.items()
        for line in re.sub(r"\\\n\s*", "", text).splitlines()
        if "docker run" in line
    ]


def writes_as_another_user(line: str) -> bool:
    """Whether a folder of the host is mounted, in which the image's own user may not write."""
    given = re.findall(r"(?:-v|--volume)[ =]([^:]+):(\S+)", line)
    mounts = [source for source, target in given if not target.strip('"').endswith(":ro")]
    mounts += re.findall(r"--mount[ =]\S*(?:type=bind)", line)
    named = all(re.fullmatch(r"[\w.-]+", mount) for mount in mounts)
    return not named and '--user "$(id -u):$(id -g)"' not in line


def test_mounted_folders_can_be_written() -> None:
    """`mt3 transcribe` writes beside its input, and files should belong to who asked for them."""
    found = runs()
    assert {path.name for path in FILES} <= {where for _, where in found}
    assert [item for item in found if writes_as_another_user(item[0])] == []


@pytest.mark.parametrize(
    "line",
    [
        'docker run --rm -v "$PWD:/work" mt3:cpu transcribe song.wav',
        "docker run -v mt3-models:/models --volume=/home/me/music:/work mt3:cpu transcribe x.wav",
        "docker run --mount type=bind,source=/music,target=/work mt3:cpu transcribe x.wav",
        'docker run -v "$PWD:/work" --user "$(id -u)" mt3:cpu transcribe x.wav',  # group root
    ],
)
def test_runs_that_cannot_write_are_found(line: str) -> None:
    assert writes_as_another_user(line)
    assert not writes_as_another_user("docker run -v mt3-models:/models mt3:cpu models pull x")


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "jetson"])
def test_runs_on_gpus_name_a_bundle(name: str) -> None:
    """The model in the package has no graphs for them."""
    lines = [line for line, where in runs() if where == f"{name}.Dockerfile"]
    assert all(" build bundle" in line or " -m bundle " in line for line in lines)


def test_there_is_an_image_for_every_target() -> None:
    assert {path.name.partition(".")[0] for path in FILES} == {
        "cpu", "cuda", "tensorrt", "rtx", "jetson", "export", "serve", "serve_cuda", "serve_rtx",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_image_keeps_the_rules(path: Path) -> None:
    base = steps(path)[0]
    assert base.name == "ARG", "the base image is a build argument"
    image = base.rest.removeprefix("BASE=")
    assert re.fullmatch(r"[\w./-]+:[\w.-]+(@sha256:[0-9a-f]{64})?", image)
    assert not image.endswith(":latest")
    build, shipped = stages(path)
    assert only(build, "FROM").rest == "${BASE} AS build"
    assert only(shipped, "FROM").rest == "${BASE}"
    assert [step.rest for step in shipped if step.name == "COPY"] == [
        "--from=build /opt/mt3 /opt/mt3"
    ]
    user = int(only(shipped, "USER").rest)  # a number: orchestrators can tell that it is not root
    assert user >= 1000
    assert only(shipped, "VOLUME").rest == "/models"
    assert "MT3_CACHE=/models" in only(shipped, "ENV").rest
    asked = command(only(shipped, "HEALTHCHECK"))
    if path.name.startswith("serve"):
        assert "http://127.0.0.1:8765/health/ready" in asked[-1]
        assert only(shipped, "EXPOSE").rest == "8765"
        compile(asked[-1], "health check", "exec")
    else:
        assert asked[:2] == ["mt3", "doctor"]
    assert only(shipped, "ENTRYPOINT").words[0] == "mt3"
    assert not [step for step in steps(path) if step.name == "ADD"]
    for step in steps(path):
        assert "pip install" not in step.rest or "--no-cache-dir" in step.rest


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_extras_exist(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"/src\[([\w,]+)\]"', only(stages(path)[0], "RUN").rest)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert not {"cpu", "gpu"} <= set(extras.split(",")), "both wheels own the same import name"


@pytest.mark.parametrize("name", ["tensorrt", "jetson"])
def test_images_for_tensorrt_have_all_that_engines_need(name: str) -> None:
    """What the extra `trt` has, but TensorRT itself, where that is the base's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", wheel)[0] for wheel in project["optional-dependencies"]["trt"]}
    path = ROOT / "docker" / f"{name}.Dockerfile"
    build, shipped = stages(path)
    script = only(build, "RUN").rest + " ".join(s.rest for s in build if s.name == "ARG")
    if ",trt]" in script:
        script += " ".join(needed)
    else:
        assert "nvcr.io/nvidia/tensorrt" in steps(path)[0].rest
        needed.discard("tensorrt-cu13")
    assert {package for package in needed if package not in script} == set()
    assert command(only(shipped, "HEALTHCHECK"))[-1] == "tensorrt"


def test_the_image_for_rtx_brings_engines_of_its_model() -> None:
    """Built where there is no GPU, and found under the names that the image sets."""
    build, shipped = stages(ROOT / "docker" / "rtx.Dockerfile")
    script, names = only(build, "RUN").rest, only(shipped, "ENV").rest
    (cache,) = re.findall(r"MT3_CACHE=(/opt/mt3/\w+) \S+/mt3 build default --for rtx", script)
    assert f"MT3_ENGINES={cache}/engines " in names
    assert f"MT3_MODEL={cache}/bundles/default " in names
    assert "--extra-index-url" not in script


@pytest.mark.parametrize("path", SERVE, ids=lambda path: path.stem)
def test_images_of_the_service_ask_for_a_token(path: Path) -> None:
    """Others can reach what a container publishes."""
    words = only(stages(path)[1], "CMD").words
    parser = argparse.ArgumentParser()
    ServeCommand().add_arguments(parser)
    given = parser.parse_args(words[1:])
    assert words[0] == "serve"
    assert given.token_file
    assert not given.no_auth
    assert given.spool.startswith("/models/")
    assert given.port == 8765


def test_the_compose_file_runs_every_image_of_the_service() -> None:
    found = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    services = found["services"]
    built = {ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]
             for service in services.values()}  # fmt: skip
    assert {path.resolve() for path in built} == set(SERVE)
    for service in services.values():
        asked = service["healthcheck"]["test"]
        shipped = stages(SERVE[0])[1]
        assert asked[0] == "CMD"
        assert asked[1:] == command(only(shipped, "HEALTHCHECK"))
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["secrets"] == ["tokens"]
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), "only this machine, unless somebody says so"
        drain = ServeCommand.default_drain
        assert int(service["stop_grace_period"].removesuffix("s")) > drain
    gpus = {name for name, service in services.items() if "deploy" in service}
    assert gpus == {"cuda", "rtx"}


def test_the_context_is_what_the_wheel_is_built_of() -> None:
    patterns = (ROOT / ".dockerignore").read_text().split()
    kept = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packages = wheel["targets"]["wheel"]["packages"]
    assert {package.partition("/")[0] for package in packages} <= kept
    assert {"pyproject.toml", "README.md", "LICENSE"} <= kept


def test_the_documented_images_are_there() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    assert {path.name for path in FILES} == set(re.findall(r"\w+\.Dockerfile", text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_linter_is_content(path: Path) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        needs.missing("extras", "there is no hadolint")
    found = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert not found.stdout


def copy_context(source: Path) -> Path:
    """What ``COPY . /src`` copies."""
    source.mkdir()
    for pattern in (ROOT / ".dockerignore").read_text().split():
        for entry in ROOT.iterdir():
            if pattern.startswith("!") and fnmatch(entry.name, pattern[1:]):
                copy = shutil.copytree if entry.is_dir() else shutil.copy
                copy(entry, source / entry.name)
    return source


def carry_out(name: str, folder: Path, **arguments: str) -> dict[str, str]:
    """Carries out the build stage below a folder; the environment that the image would have."""
    if not os.environ.get("MT3_TEST_INSTALL"):
        needs.missing("install", "MT3_TEST_INSTALL is not set")
    build, shipped = stages(ROOT / "docker" / f"{name}.Dockerfile")
    source = copy_context(folder / "src")
    script = only(build, "RUN").rest
    for there, here in (("/src", source), ("/opt/mt3", folder / "opt")):
        script = script.replace(there, str(here))
    script = re.sub(r"\bpython -m", f"{sys.executable} -m", script)
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **arguments}
    subprocess.run(["sh", "-eu", "-c", script], env=clean, check=True, timeout=HANGS)
    inside = clean | {"PATH": f"{folder / 'opt' / 'bin'}:/usr/bin:/bin"}
    names = re.findall(r"(MT3_\w+)=(\S+)", only(shipped, "ENV").rest)
    inside |= {key: value.replace("/opt/mt3", str(folder / "opt")) for key, value in names}
    inside["MT3_CACHE"] = str(folder / "models")
    return inside


@pytest.mark.parametrize("name", ["cpu", "export"])
def test_what_is_installed_works(name: str, tmp_path: Path) -> None:
    """Carries out the build stage, then asks what the image would be asked."""
    inside = carry_out(name, tmp_path)
    _, shipped = stages(ROOT / "docker" / f"{name}.Dockerfile")
    for asked in (command(only(shipped, "HEALTHCHECK")),
                  [*only(shipped, "ENTRYPOINT").words, *only(shipped, "CMD").words]):  # fmt: skip
        done = subprocess.run(asked, env=inside, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout


def test_the_image_for_rtx_builds_its_engines(tmp_path: Path) -> None:
    """In an environment of its own, without a GPU; they are found, and whole, afterwards."""
    inside = carry_out("rtx", tmp_path, TARGETS="sm89")

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=inside, capture_output=True, text=True, check=False)

    listed = ask("mt3", "engines", "list")
    assert listed.stdout.count("-rtx") == 4, listed.stdout + listed.stderr
    assert ask("mt3", "engines", "verify").returncode == 0
    asked = ask("mt3", "transcribe", str(ROOT / "calibration" / "demo" / "demo.flac"), "--device",
                "rtx", "-o", str(tmp_path / "x.mid"))  # fmt: skip
    _, shipped = stages(ROOT / "docker" / "rtx.Dockerfile")
    healthy = ask(*command(only(shipped, "HEALTHCHECK"))).returncode == 0
    assert healthy is (asked.returncode == 0)
    if not healthy:  # no GPU here
        assert asked.returncode == ExitCode.UNUSABLE
        assert asked.stderr.count("\n") == 1
        assert "device rtx" in asked.stderr


#: What the base image has, as far as the steps use it.
BASE = "python3,python3-pip,python3-venv,python-is-python3,ca-certificates"
BASE_PYTHON = "3.11"  # of Debian bookworm


def test_the_cpu_image_in_a_bare_root(tmp_path: Path) -> None:
    """All its steps where nothing of this machine is found, and its commands as its user."""
    made, root = os.environ.get("MT3_TEST_ROOT"), tmp_path / "root"
    if not made:
        needs.missing("debootstrap", "MT3_TEST_ROOT is not set")
    if made == "1":
        bootstrap = ["debootstrap", "--variant=minbase", f"--include={BASE}", "bookworm", root]
        subprocess.run(bootstrap, check=True, timeout=HANGS, stdout=subprocess.DEVNULL)
    else:
        subprocess.run(["cp", "-a", made, root], check=True)
    copy_context(root / "src")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"],
              *project["project"]["optional-dependencies"]["cpu"]]  # fmt: skip
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    download += ["--python-version", BASE_PYTHON, "--dest", root / "wheels", *wanted]
    subprocess.run(download, check=True, timeout=HANGS)
    build, shipped = stages(ROOT / "docker" / "cpu.Dockerfile")
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PIP_NO_INDEX": "1", "HOME": "/root",
             "PIP_FIND_LINKS": "/wheels"}  # fmt: skip

    def inside(words: list[str], env: dict[str, str], *options: str) -> str:
        done = subprocess.run(["chroot", *options, root, *words], env=env, capture_output=True,
                              text=True, check=False, timeout=HANGS)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for step in (only(build, "RUN"), only(shipped, "RUN")):
        inside(["sh", "-eu", "-c", step.rest], clean)
    given = [pair.partition("=") for pair in only(shipped, "ENV").rest.split()]
    running = {name: value.replace("$PATH", clean["PATH"]) for name, _, value in given}
    user = only(shipped, "USER").rest
    for asked in (command(only(shipped, "HEALTHCHECK")),
                  [*only(shipped, "ENTRYPOINT").words, *only(shipped, "CMD").words]):  # fmt: skip
        assert inside(asked, running, f"--userspec={user}:{user}")
    volume = root / only(shipped, "VOLUME").rest.lstrip("/")
    assert volume.stat().st_uid == int(user)
