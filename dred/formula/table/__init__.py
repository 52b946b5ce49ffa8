"""The entries of the table of operations, by kind."""
