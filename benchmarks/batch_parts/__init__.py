"""What benchmarks/batch.py is made of."""
