"""Fuzzers of everything that parses bytes from outside; `make fuzz` runs them."""
