"""Front ends in NumPy: from samples to the features that taggers and classifiers read."""
