"""What happens to a prediction on the input's grid before it is written."""
