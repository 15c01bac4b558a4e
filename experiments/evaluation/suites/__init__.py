"""One file per suite; each registers itself."""
