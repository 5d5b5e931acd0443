"""The components that medseg ships, registered as a third party would register its own."""
