"""`python -m bitsfusion`: the command line."""

from bitsfusion.cli.main import main

if __name__ == "__main__":
    main()
