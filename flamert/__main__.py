"""`python -m flamert`: the command line."""

from flamert.cli import main

main()
