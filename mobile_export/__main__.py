"""`python -m mobile_export` is the command `mobile-export`."""

from mobile_export.cli import main

if __name__ == "__main__":
    main()
