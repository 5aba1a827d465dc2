"""``flask mysqlpool``: arguments in, lines out."""
