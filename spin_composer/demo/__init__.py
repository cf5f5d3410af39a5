"""The demonstration: a small world of text, a base model made on the spot, and the game."""
