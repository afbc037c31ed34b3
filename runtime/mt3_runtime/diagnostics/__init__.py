"""What is installed here and what works."""
