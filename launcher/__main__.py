"""``python -m launcher`` is the `bigbatch` command."""

from launcher.cli import main

main()
