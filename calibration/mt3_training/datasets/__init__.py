"""Data sets of stems: readers, the index, and the filter."""
