"""Several runs and evaluations side by side."""
