"""Integer products for CPUs: `fast` and `small`."""
