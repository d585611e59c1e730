"""One training run: weights and a mask in, trained weights and a learning curve out."""
