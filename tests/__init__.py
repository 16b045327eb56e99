"""The tests of the walk. A file states a truth and runs it over every backend; tolerances.py holds every tolerance."""
