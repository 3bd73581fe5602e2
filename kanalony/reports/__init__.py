"""Reports: queries over the lake and its rollups, for the command line, the query action and the dashboard.

query.py and parsing.py say what a query is, planner.py chooses tables, statement.py builds the SQL, execution.py runs
it, renderer.py writes the result. api/ serves the query action and the dashboard/ over HTTP.
"""
