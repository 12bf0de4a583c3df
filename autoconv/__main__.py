"""`python -m autoconv` is the command `autoconv`, which begins here."""

from __future__ import annotations

import sys

from autoconv import interrupt


def main() -> None:
    """Run the command; Ctrl-C while it is being imported ends it as it does later on."""
    try:
        from autoconv.cli import main as command
    except KeyboardInterrupt:
        sys.exit(interrupt.heard())
    command()


if __name__ == "__main__":
    main()
