"""Several processes that serve on the same addresses, below one that keeps them running."""
