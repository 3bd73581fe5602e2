"""kanalony: an event collector for video players."""

__version__ = "0.1.0"
