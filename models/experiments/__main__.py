"""`python -m models.experiments`: see `models.experiments.study`."""

import sys

from models.experiments.study import main

if __name__ == "__main__":
    sys.exit(main())
