"""python -m kanalony."""

from kanalony.cli import main

main()
