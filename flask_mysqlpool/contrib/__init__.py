"""What other libraries need to work on our pools, where a recipe would be too long."""
