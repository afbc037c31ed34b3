"""Notes to files and back: MIDI, JSON, JSON lines and CSV, written atomically."""
