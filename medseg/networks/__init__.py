"""What networks are made of, how they are put together, and how their weights are kept."""
