"""What is checked before anything costs."""
