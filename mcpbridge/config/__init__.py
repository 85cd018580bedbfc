"""Settings: their declaration and checks, their options, and the file they are read from."""
