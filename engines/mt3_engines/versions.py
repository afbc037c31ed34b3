"""TensorRT versions: which are supported, and how they differ.

Everything the project does with TensorRT is restricted to what 10.3, 10.16 and 11.4 all offer, or
is asked for here.  The limits come from the bindings themselves (`tests/engines/bindings.py`) and
from the parser's operator table (`operators.json`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mt3_runtime.errors import DeviceError
from mt3_runtime.imports.extras import pip, requirement


class Version(NamedTuple):
    """The part of a version that decides anything; compares like a tuple."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


#: Oldest supported version (JetPack 6), and the first that nobody has looked at.
OLDEST, TOO_NEW = Version(10, 3), Version(12, 0)

#: The first version with a layer that writes into a cache in place, and with RMS norms.
IN_PLACE = Version(10, 15)


def parse_version(text: str) -> Version:
    """Reads the beginning of ``10.16.1.11`` and the like.

    Raises:
        DeviceError: It is not a version, or one that is not supported.
    """
    match = re.match(r"(\d{1,4})\.(\d{1,4})", text)
    version = Version(int(match[1]), int(match[2])) if match else Version(0, 0)
    if not OLDEST <= version < TOO_NEW:
        raise DeviceError(
            f"TensorRT {text} is not supported: engines need {OLDEST} or newer, and nothing is "
            f"known of {TOO_NEW.major}.x. Install another one: "
            f"{pip(requirement('tensorrt', 'trt'))}."
        )
    return version


def updates_in_place(version: Version) -> bool:
    """Whether TensorRT can write into the cache; older ones copy it in every step."""
    return version >= IN_PLACE
