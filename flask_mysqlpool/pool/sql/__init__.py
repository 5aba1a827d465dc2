"""How rows become what the caller wants, and what statements are made of."""
