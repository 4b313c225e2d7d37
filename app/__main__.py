"""`python -m app` is `tokenwire`."""

from app.cli import main

main()
