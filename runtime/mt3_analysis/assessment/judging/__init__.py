"""Heads that judge measures: execution, style; percentiles, and the order of takes."""
