"""`python -m models.rates`: the learning rates of the experiments, see `models.experiments.rates`."""

import sys

from models.experiments.rates import main

if __name__ == "__main__":
    sys.exit(main())
