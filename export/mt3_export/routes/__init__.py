"""Graphs traced from independent implementations, for comparison."""
