"""``python -m launcher`` is the `bigbatch` command."""

from launcher.cli.main import main

main()
