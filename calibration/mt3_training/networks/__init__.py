"""The network in PyTorch: layers, losses, optimisers, first weights."""
