"""What other packages add to the runtime through entry points, as plain functions."""
