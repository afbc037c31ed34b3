"""What runs for a long time, or on many machines: servers and clusters, behind extras."""
