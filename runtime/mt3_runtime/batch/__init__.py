"""Batches of recordings: what was done, what is left to do, and what came of it."""
