"""Models by name: the catalogue, downloads, and what is installed or shipped."""
