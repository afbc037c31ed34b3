"""Test sets, and models scored side by side on them."""
