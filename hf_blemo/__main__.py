"""`python -m hf_blemo`: the command `hf-blemo`."""

import sys

from hf_blemo.cli import main

if __name__ == "__main__":
    sys.exit(main())
