"""The query action and the dashboard's page over HTTP: a process of its own, which only reads the data directory."""
