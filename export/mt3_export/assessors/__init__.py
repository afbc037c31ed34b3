"""Networks that assess performances: reads their checkpoints, writes their graphs and bundles."""
