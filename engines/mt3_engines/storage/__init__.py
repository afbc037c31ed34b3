"""Engines by key: what describes them, and where they are kept."""
