"""What benchmarks/inference.py and benchmarks/memory.py are made of."""
