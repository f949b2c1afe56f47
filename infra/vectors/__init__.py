"""Published test vectors, run through the product's own primitives."""
