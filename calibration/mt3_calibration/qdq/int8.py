"""The recipe ``int8``, as `mt3_calibration.precision.recipes` looks for it."""

from mt3_calibration.qdq.recipe import INT8 as RECIPE

__all__ = ["RECIPE"]
