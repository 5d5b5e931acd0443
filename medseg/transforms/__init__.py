"""What happens to a volume before a network: preprocessing, intensities, augmentation."""
