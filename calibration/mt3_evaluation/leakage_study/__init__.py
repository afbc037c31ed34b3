"""Sets, evidence and scores for the leakage filter."""
