"""Settings: what they are, what they must be, and how they are read from a file."""
