"""What lies on disk: volumes, their geometry, and the cases they make up."""
