"""`python -m autoconv` is the command `autoconv`."""

from autoconv.cli import main

main()
