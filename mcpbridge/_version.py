"""The version, in one place: read at run time and, as text, by `setup.py`."""

__version__ = "0.1.0"
