"""Performances for assessment: made up, spoiled, read from sets that a user has."""
