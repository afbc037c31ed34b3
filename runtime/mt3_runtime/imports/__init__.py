"""Imports: public names when they are asked for, former paths, optional packages."""
