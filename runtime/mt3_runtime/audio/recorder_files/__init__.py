"""What the recorder of a browser makes, decoded while it still grows: Opus in WebM or Ogg."""
