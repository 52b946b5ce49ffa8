"""The formula language: nodes, syntax, the table of operations, derivatives, rewriting and the dense oracle."""
