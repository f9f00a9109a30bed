"""The `bigbatch` command: arguments, options and help of every subcommand."""
