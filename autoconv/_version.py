"""The version of this library, written down once."""

__version__ = "0.1.0"
