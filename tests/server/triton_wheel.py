"""Starts the Triton server of the wheel nvidia-pytriton on a model repository.

The wheel holds the server, its Python backend, and a stub of that for each Python.  The stub runs
the Python that ``PATH`` finds first, and needs its library; so every server gets a virtual
environment made for it, in which `sys.path` says what is installed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.pace import until

#: Seconds until a server says whether it is ready, on a busy machine.
PATIENCE = 240.0

ASK = """
import sys, sysconfig
print(sysconfig.get_path("purelib"), sysconfig.get_config_var("LIBDIR"),
      "%d.%d" % sys.version_info[:2], sys.base_prefix, sep="\\n")
"""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        http: Its address.
        grpc: Its address.
        log: What it says.
        process: It.
    """

    http: str
    grpc: str
    log: Path
    process: subprocess.Popen[bytes]

    def rss(self) -> int:
        """Bytes of memory of the server and the processes below it."""
        group, total = os.getpgid(self.process.pid), 0
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(place.name)) == group:
                    pages = int((place / "statm").read_text("ascii").split()[1])
                    total += pages * os.sysconf("SC_PAGE_SIZE")
            except (OSError, ValueError):
                continue
        return total


def packages(python: str) -> tuple[Path, str, str]:
    """Folder of the packages of a Python, folder of its library, and its version."""
    told = subprocess.check_output([python, "-c", ASK], text=True).splitlines()
    return Path(told[0]), told[1], told[2]


def make_backend(python: str, folder: Path) -> Path:
    """The folder of the backends, with the stub for a Python."""
    site, _, version = packages(python)
    wheel = site / "pytriton" / "tritonserver"
    backend = folder / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", backend)
    stub = backend / "triton_python_backend_stub"
    shutil.copy(wheel / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    return backend.parent


def make_environment(python: str, folder: Path, paths: Sequence[str | Path]) -> Path:
    """A virtual environment of that Python whose packages are found in some folders."""
    base = subprocess.check_output(
        [python, "-c", "import sys; print(sys._base_executable)"], text=True
    ).strip()
    subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True)
    site, _, _ = packages(str(folder / "bin" / "python"))
    (site / "tested.pth").write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    return folder


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def serving(
    python: str, repository: Path, folder: Path, paths: Sequence[str | Path] = (),
    models: Sequence[str] = ("mt3", "mt3_stream"), *, ready: bool = True,
) -> Iterator[Server]:  # fmt: skip
    """A server, once it is ready, or has ended.

    Args:
        python: Of an environment with the wheel and what the models need.
        repository: Of models.
        folder: For what the server needs.
        paths: Folders in which the models' packages are looked for before those of ``python``.
        models: Those that are loaded.
        ready: Whether to wait until all are; otherwise until the server ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    site, library, _ = packages(python)
    environment = make_environment(python, folder / "python", [*paths, site])
    http, grpc, metrics = free_ports(3)
    command = [
        site / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        f"--model-repository={repository}", f"--backend-directory={make_backend(python, folder)}",
        "--model-control-mode=explicit", *(f"--load-model={name}" for name in models),
        "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics}",
        "--allow-gpu-metrics=false", "--exit-timeout-secs=10", "--log-error=true",
    ]  # fmt: skip
    libraries = os.pathsep.join([library, str(site / "nvidia_pytriton.libs")])
    surroundings = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")
    } | {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": libraries,
    }
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=surroundings, start_new_session=True
        )
    server = Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", log, process)
    try:
        _wait(server, ready=ready)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, *, ready: bool) -> None:
    until(lambda: server.process.poll() is not None or _is_ready(server))
    if ready and server.process.poll() is not None:
        raise RuntimeError(f"the server ended:\n{server.log.read_text('utf-8')[-4000:]}")


def _is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"http://{server.http}/v2/health/ready", timeout=PATIENCE):
            return True
    except OSError:
        return False


def source_paths() -> list[str]:
    """Where the packages under test are imported from."""
    import mt3_runtime
    import mt3_server

    return [str(Path(one.__file__ or "").parents[1]) for one in (mt3_runtime, mt3_server)]
