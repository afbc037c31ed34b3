"""Telemetry of ONNX Runtime: turned off, as its official wheels have it on.

Since release 1.31 a process that imports ONNX Runtime leaves a device id below the home folder and
reports to Microsoft, unless `VARIABLE` is set before.  Whoever sets it decides; where nobody has,
`refuse` does, when `mt3_runtime` is imported.
"""

import os
import sys

VARIABLE = "ORT_DISABLE_TELEMETRY"
"""What ONNX Runtime reads as it is imported: 1 for no telemetry at all."""


def refuse() -> None:
    """Turns ONNX Runtime's telemetry off for this process and those it starts.

    Where the program has imported ONNX Runtime already, which counts only then, it is asked to send
    no further events.
    """
    if VARIABLE in os.environ:
        return
    os.environ[VARIABLE] = "1"
    loaded = sys.modules.get("onnxruntime")
    disable = getattr(loaded, "disable_telemetry_events", None)  # releases before had none
    if disable is not None:
        disable()
