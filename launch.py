"""Launch experiments from a checkout: python launch.py --config=experiments/shakespeare.py, or --help."""

import sys

from hybrid_flax.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
