"""Several runs of one config, or of several, and what they say together."""
