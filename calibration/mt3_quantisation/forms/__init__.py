"""Ways to store and compute a bundle in fewer bits."""
