"""Where the graphs run: one module per backend, chosen by `mt3_runtime.backends.devices`."""
