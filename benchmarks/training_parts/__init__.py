"""What benchmarks/training.py is made of."""
