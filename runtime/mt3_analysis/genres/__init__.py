"""Genres: the published ensemble, its rules by the figure, and one that weighs evidence."""
