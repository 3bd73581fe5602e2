"""python -m kanalony."""

from kanalony.cli import main

main(prog_name="kanalony")
