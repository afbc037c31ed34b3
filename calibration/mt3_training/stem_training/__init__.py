"""Training of one model per stem: runs in turn, their judgement, and comparisons."""
