"""Adapters for other libraries, where a recipe would be too long."""
