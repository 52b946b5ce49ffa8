"""What the command line runs: checks of a machine, and its headline figures."""
