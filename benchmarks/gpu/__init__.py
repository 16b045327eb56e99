"""The stages of `benchmarks.gpu_suite`: each module is one command that writes one results file."""
