"""kanalony: an event collector for video players."""
