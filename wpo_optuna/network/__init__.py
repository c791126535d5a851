"""A network of the user: reading it, what of it is analogue, its weights, applying a strategy."""
