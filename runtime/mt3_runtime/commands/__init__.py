"""The runtime's own sub-commands, one module each; `mt3_runtime.cli` says what a command is."""
