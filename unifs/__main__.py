"""``python -m unifs``: the command line."""

from unifs.cli import main

if __name__ == "__main__":
    main()
