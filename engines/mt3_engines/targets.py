"""Targets of TensorRT for RTX: names of the kinds of GPUs that an engine is built for.

A target is a compute capability, which its name holds: ``sm89`` is 8.9.  What is not among them
runs with ordinary TensorRT, or not at all.
"""

from __future__ import annotations

from mt3_engines.storage.keys import EngineTarget, capability_of
from mt3_engines.versions import RTX, TENSORRT
from mt3_runtime.errors import DeviceError, OptionError

#: Stands for all of them.
ALL = "all"
#: Name -> compute capability, in ascending order.
TARGETS = {f"sm{target.replace('.', '')}": target for target in RTX.targets}

#: Oldest GPUs that ordinary TensorRT serves.
_SERVED = (7, 5)


def parse_targets(text: str) -> tuple[str, ...]:
    """Reads ``sm75,sm89`` or ``all``: compute capabilities, ascending, each once.

    Raises:
        OptionError: A name is unknown, or is that of GPUs that ordinary TensorRT serves.
    """
    names = [name.strip().lower() for name in text.split(",")]
    if ALL in names:
        names += TARGETS
        names = [name for name in names if name != ALL]
    for name in names:
        if name not in TARGETS:
            number = name.removeprefix("sm")
            served = name.startswith("sm") and number.isascii() and number.isdecimal()
            known = f"{RTX.title} has the targets {', '.join(TARGETS)}"
            if served and _SERVED <= (int(number[:-1] or 0), int(number[-1])) < (13, 0):
                raise OptionError(
                    f"{known}, and not {name}: ordinary TensorRT serves such GPUs, with mt3 build "
                    f"--for {TENSORRT.name} where one is."
                )
            raise OptionError(f"{known}, or {ALL}, with commas between them; got {text!r}.")
    return tuple(target for name, target in TARGETS.items() if name in names)


def check_gpu(place: EngineTarget) -> None:
    """Refuses a GPU that no engine of TensorRT for RTX can be for.

    Raises:
        DeviceError: It is one; the message says what serves it.
    """
    if place.capability in RTX.targets:
        return
    served = capability_of(place.capability) >= _SERVED
    remedy = f"device {TENSORRT.name} or cuda serves it" if served else "use device cuda or cpu"
    raise DeviceError(
        f"{RTX.title} does not run on {place.gpu} (compute capability {place.capability}), only on "
        f"{', '.join(RTX.targets)}; {remedy}."
    )
