"""Training runs, which turn weights and a mask into trained weights and a learning curve."""
