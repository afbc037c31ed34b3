"""Arguments of the public functions: what they may be, and the error where they are not."""
