"""Measures of a performance: one function each, with unit, count and definition."""
