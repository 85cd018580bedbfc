"""The stdio side: starting a backend, talking to it, and ending its whole process tree."""
