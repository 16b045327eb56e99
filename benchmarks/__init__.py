"""Measurements of every claim of this project: `pytest benchmarks/ --benchmark-only`, or `python -m benchmarks.record`.

What is measured (`questions`), on which problems (`cases`, `inputs`), against whom (`peers`), judged by what
(`correctness` first, then `cost`), how (`clock`), and what becomes of it (`rows`, `record`, `report`). Nothing here
needs pytest but the test files.
"""
