"""The recipe ``fp8``, as `mt3_calibration.precision.recipes` looks for it."""

from mt3_calibration.qdq.recipe import FP8 as RECIPE

__all__ = ["RECIPE"]
