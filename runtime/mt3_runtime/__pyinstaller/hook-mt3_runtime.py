"""What PyInstaller cannot see: lazy imports, data files and metadata.

The packages' modules are listed when a program is frozen, not here, and of the optional packages
those are taken that are installed then.  Their own hooks bring their libraries.
"""

from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

from mt3_runtime.diagnostics.wheels import ORT_WHEELS
from mt3_runtime.imports.lazy import HOLDERS

#: Imported where they are used, see `mt3_runtime.imports.extras.require`.
OPTIONAL = ("onnxruntime", "soundfile", "soxr", "rich.console", "rich.progress")

hiddenimports = [
    *collect_submodules("mt3_runtime", filter=lambda name: "__pyinstaller" not in name),
    *collect_submodules("mt3_analysis"),  # commands of it are found by their entry points
    *(name for name in OPTIONAL if find_spec(name.partition(".")[0])),
]
datas = [*collect_data_files("mt3_runtime"), *collect_data_files("mt3_analysis")]
# What is installed, and in which version: `mt3 doctor` and the list of commands ask for it.
for name in (*HOLDERS, "numpy", "mido", "soundfile", "soxr", "rich", *ORT_WHEELS):
    try:
        datas += copy_metadata(name)
    except PackageNotFoundError:
        continue
