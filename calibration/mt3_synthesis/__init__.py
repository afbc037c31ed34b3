"""Made-up recordings with exact labels: music, sounds, mixing, rooms."""
