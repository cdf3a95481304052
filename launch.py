"""Launch experiments: python launch.py [train|eval|generate|plan] --config=experiments/x.py[:arg] ..."""

import sys

from hybrid_flax.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
