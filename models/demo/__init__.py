"""The first run on real input: `python -m models.demo`, from the repository root (`make demo`)."""
