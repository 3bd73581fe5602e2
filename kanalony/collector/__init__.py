"""The collector: HTTP requests to journals and segments."""
