"""What is checked before any expensive work."""
