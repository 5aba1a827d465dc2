"""The pools in the tools that you have already; each needs an extra of its own."""
