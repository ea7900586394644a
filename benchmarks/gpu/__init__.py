"""All measurements of a GPU by one command: see benchmarks/gpu/__main__.py."""
