"""From cases to a trained model: sampling, losses and one readable loop."""
