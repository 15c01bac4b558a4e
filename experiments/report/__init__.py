"""The page a run leaves behind, and the README's picture."""
