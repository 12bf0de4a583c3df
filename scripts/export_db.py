"""Writes measurements to one file that others can read: `autoconv export`, without installing the command."""

from autoconv.cli.transfer import export

if __name__ == "__main__":
    export()
