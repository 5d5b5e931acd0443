"""From a trained model and a volume to a mask in the volume's own geometry."""
