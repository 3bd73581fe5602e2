"""The paths that the collector serves."""

COLLECT_PATH = "/collect"
TRACKING_PATHS = (COLLECT_PATH, "/api_v3/index.php", "/pixel.gif")
"""Paths whose requests are events; the setting `path` adds others. Those ending in .gif answer with a pixel."""

ROBOTS_PATH = "/robots.txt"
ICON_PATH = "/favicon.ico"
