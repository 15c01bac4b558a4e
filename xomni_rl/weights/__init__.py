"""The embedded stack's weights, in `signs/`; its README is the card with their figures."""
