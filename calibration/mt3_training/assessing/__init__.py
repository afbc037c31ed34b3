"""Trains the networks that assess performances, and reports what they learned."""
