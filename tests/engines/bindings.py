"""Makes the published bindings of TensorRT importable without TensorRT.

The Python bindings on PyPI are a megabyte; what they bind is not there.  To be imported they need
nine functions of three libraries, which a C compiler makes in a second.  Every class, method and
signature can be read then, and nothing can be run: `test_bindings.py` holds our calls against them.

    python tests/engines/bindings.py FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

#: The oldest supported version, the one the extra ``trt`` pins, and the newest.
TENSORRT = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
CUDA = "cuda-bindings==13.4.4"
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")

#: All that the bindings ask of the libraries when they are imported.
STUB = """
void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return 0; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
void *getPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void *logger, const char *library) { return 1; }
"""


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def make(folder: Path) -> None:
    """Makes ``FOLDER/<version>`` for every version, and ``FOLDER/cuda``; keeps what is there."""
    for version, package in TENSORRT.items():
        place = folder / version
        if (place / "tensorrt.py").exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        pip("download", "--no-deps", "--dest", place, f"{package}=={version}")
        for wheel in place.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place)
            wheel.unlink()
        source = place / "stub.c"
        source.write_text(STUB, encoding="utf-8")
        for library in LIBRARIES:
            name = f"{library}.so.{version.partition('.')[0]}"
            linked = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", place / name, source]
            subprocess.run(["cc", *linked], check=True)
        # The last thing made, so that an interrupted run is done again.
        alias = "import sys, tensorrt_bindings\nsys.modules[__name__] = tensorrt_bindings\n"
        (place / "tensorrt.py").write_text(alias, encoding="utf-8")
    if not (folder / "cuda").exists():
        pip("install", "--target", folder / "cuda", CUDA)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
