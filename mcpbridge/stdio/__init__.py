"""The stdio side: start a backend, talk to it, and end its whole process tree."""
