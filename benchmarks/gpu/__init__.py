"""All measurements that need a GPU, by one command: see benchmarks/gpu/__main__.py."""
