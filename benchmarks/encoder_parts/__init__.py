"""What benchmarks/encoders.py is made of."""
