"""Runs the command line: `python -m app` is the same as `tokenwire`."""

from app.cli.commands import main

main()
