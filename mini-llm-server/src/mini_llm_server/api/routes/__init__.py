"""One file for each group of URLs."""
