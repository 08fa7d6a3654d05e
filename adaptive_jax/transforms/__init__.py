"""What is made of whole optimizers: chains, wrappers, and what walks through them."""
