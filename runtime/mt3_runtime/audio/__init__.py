"""Audio to features: reads files and streams, cuts segments, computes log-mel spectra."""
