"""What is measured: a module for one table or several of a subject."""
