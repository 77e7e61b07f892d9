"""The front door: ``activedpo simulate|map|align|theory|bench|assets|report`` imports what it is asked for."""

from bandits import __version__

__all__ = ["__version__"]
