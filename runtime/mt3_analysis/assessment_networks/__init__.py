"""Runs networks that assess piano performances, and diagnoses what such networks have learned."""
