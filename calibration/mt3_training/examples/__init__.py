"""Training examples: windows of audio with tokens and frame-wise targets."""
