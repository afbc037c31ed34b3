"""The record of a batch: a journal beside the results, and what it is made of."""
