"""How a pair batch is laid out for one forward of the model."""
