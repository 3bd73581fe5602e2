"""Settings: every option of every command, with its meaning, unit, default and trade-off.

`shared.py` has the data directory, which every command needs, and the forms of values; `serving.py`, `compaction.py`
and `reports.py` have the options of their commands. `loading.py` reads them: defaults, kanalony.toml, the environment
(KANALONY_ and the name in capitals) and the command line, each overriding the one before. One file and one environment
serve all commands: a command takes its own options from them. docs/configuration.md is generated from these models.
"""
