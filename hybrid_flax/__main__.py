"""`python -m hybrid_flax` is launch.py wherever the package is."""

import sys

from hybrid_flax.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
