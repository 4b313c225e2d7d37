"""`python -m app` is `tokenwire`."""

from app.cli.commands import main

main()
