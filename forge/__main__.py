"""``python -m forge`` is the command ``forge``."""

from forge.cli.app import main

if __name__ == "__main__":
    main()
