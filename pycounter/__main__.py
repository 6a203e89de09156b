"""`python -m pycounter` is the command `pycounter`."""

from pycounter.cli import main

if __name__ == "__main__":
    main()
