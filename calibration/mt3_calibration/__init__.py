"""Training data, quantised bundles, and scores of transcriptions."""
