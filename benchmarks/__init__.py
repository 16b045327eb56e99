"""Measurements of every claim of this project: `pytest benchmarks/ --benchmark-only`, or `python -m benchmarks.record`.

    what is measured        questions: cascade, projection, models, memory    on which problems    cases, inputs
    beside whom             peers                                             judged by            truth, then cost
    how time is taken       clock, device                                     one result           tasks
    what becomes of it      record, results, show, tables, plots, report
    two revisions           compare, worker, counts                           a GPU                gpu_suite, gpu_stages

Nothing here needs pytest but the test files.
"""
