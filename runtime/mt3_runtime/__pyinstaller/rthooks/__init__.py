"""Scripts that frozen programs run ahead of themselves."""
