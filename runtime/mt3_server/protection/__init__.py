"""Who may ask for what, how much of it, and how requests are refused."""
