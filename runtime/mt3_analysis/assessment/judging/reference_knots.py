"""Places indices among those of reference performances: percentiles from knots.

Contract: a reference is a JSON file that `mt3 calibrate assess reference` makes of performances
that a user has.  It holds quantiles of the index of each dimension, nothing of the performances.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mt3_analysis.assessment.assessment_results import Assessment, Dimension
from mt3_analysis.assessment.performance import Floats, read_bounded
from mt3_runtime.arguments.argument_checks import as_path
from mt3_runtime.errors import OptionError

REFERENCE_FORMAT = "mt3-runtime.assessment-reference"
REFERENCE_VERSION = 1

KNOTS = 21
"""Quantiles of a dimension: steps of five percentiles."""

FEWEST = 20
"""Performances a dimension needs; of fewer, steps of five percentiles mean nothing."""

_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Reference:
    """Quantiles of indices.

    Attributes:
        knots: By head and dimension, ``KNOTS`` rising values.
    """

    knots: Mapping[str, tuple[float, ...]]

    def placed(self, dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
        """The same dimensions, with percentiles where there are knots."""
        return tuple(replace(each, percentile=self._percentile(each)) for each in dimensions)

    def _percentile(self, dimension: Dimension) -> float | None:
        knots = self.knots.get(f"{dimension.head}.{dimension.name}")
        if knots is None or dimension.value is None:
            return None
        values: Floats = np.asarray(knots)
        shares = np.linspace(0.0, 100.0, len(values))
        below = np.searchsorted(values, dimension.value, side="left")
        above = np.searchsorted(values, dimension.value, side="right")
        if above > below:  # as many of the reference have just this value
            return float((shares[below] + shares[above - 1]) / 2)
        return float(np.interp(dimension.value, values, shares))


def make_reference(assessments: Sequence[Assessment]) -> bytes:
    """A reference as a file.

    Raises:
        OptionError: No dimension could be judged in `FEWEST` of the performances.
    """
    values: dict[str, list[float]] = {}
    for assessment in assessments:
        for each in assessment.dimensions:
            if each.value is not None:
                values.setdefault(f"{each.head}.{each.name}", []).append(each.value)
    shares = np.linspace(0.0, 1.0, KNOTS)
    knots = {
        name: np.round(np.quantile(found, shares), 6).tolist()
        for name, found in values.items()
        if len(found) >= FEWEST
    }
    if not knots:
        raise OptionError(
            f"{len(assessments)} performances are no reference; expected {FEWEST} or more in which "
            "one dimension can be judged."
        )
    content = {"format": REFERENCE_FORMAT, "version": REFERENCE_VERSION, "knots": knots}
    return (json.dumps(content, indent=1) + "\n").encode()


def read_reference(path: str | os.PathLike[str]) -> Reference:
    """Reads a reference.

    Raises:
        OptionError: It cannot be read, or is none.
    """
    file = as_path("reference", path)
    try:
        content = json.loads(read_bounded(file, "a reference", _MAX_BYTES))
        if (content["format"], content["version"]) != (REFERENCE_FORMAT, REFERENCE_VERSION):
            raise ValueError(content["format"])  # noqa: TRY301
        knots = {str(name): tuple(map(float, found)) for name, found in content["knots"].items()}
        sound = all(len(k) >= 2 and list(k) == sorted(k) for k in knots.values())
        if not sound:
            raise ValueError("its knots do not rise")  # noqa: TRY301
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"{str(file)!r} is no reference of this version ({error}); make one with "
            "`mt3 calibrate assess reference`."
        ) from error
    return Reference(knots)
