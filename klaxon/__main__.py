"""`python -m klaxon` is the `klaxon` command."""

from klaxon.cli import main

main()
