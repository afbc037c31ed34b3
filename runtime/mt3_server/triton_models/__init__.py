"""Models of NVIDIA Triton's Python backend: the repository that is written, and what runs in it."""
