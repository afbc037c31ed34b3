"""One cold start, for cold_start.py: from the first line of user code to the first token.

    python cold_probe.py ours BUNDLE            python cold_probe.py shipped CHECKPOINT

Prints one JSON object: seconds by phase, and the time of day at which the first token was there.
"""

# ruff: noqa: PLC0415  the imports are what is timed

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise

marks = [("start", time.perf_counter())]


def mark(name: str) -> None:
    """Ends a phase."""
    marks.append((name, time.perf_counter()))


def ours(path: str) -> None:
    """The runtime: import, load, features + encoder + one decoder step."""
    import mt3_runtime.loading

    mark("import")
    import onnxruntime  # noqa: F401

    mark("import onnxruntime")
    model = mt3_runtime.loading.load_model(path)
    mark("load")
    import numpy as np

    segment = np.zeros(model.info.segments.samples, np.float32)
    lane = model._backend.lane(1)  # noqa: SLF001  the public face decodes whole segments only
    lane.load(0, model.preprocess(segment)[0])
    lane.step(1)
    mark("first token")


def shipped(path: str) -> None:
    """mt3-infer: the same, with its default model."""
    import shipped_peer

    mark("import")
    shipped_peer.load(path, threads=shipped_peer.torch.get_num_threads())
    mark("load")
    import numpy as np
    import torch

    model = shipped_peer._state["model"]  # noqa: SLF001
    features = torch.from_numpy(model.preprocess(np.zeros(32640, np.float32))).float()
    with torch.no_grad():
        model._model.generate(inputs=features[:1], max_length=1)  # noqa: SLF001
    mark("first token")


if __name__ == "__main__":
    {"ours": ours, "shipped": shipped}[sys.argv[1]](sys.argv[2])
    now = time.time()
    phases = {name: end - begin for (_, begin), (name, end) in pairwise(marks)}
    print(json.dumps({"phases": phases, "ready_at": now}))
