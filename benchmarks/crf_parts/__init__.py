"""What benchmarks/crf.py is made of."""
