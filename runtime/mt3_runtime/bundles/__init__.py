"""Bundles: the manifest, the checks of its files, and the few graphs the runtime writes itself."""
