"""``python -m unifs``: the command line, as scripts/unifs runs it."""

from unifs.cli import main

if __name__ == "__main__":
    main()
