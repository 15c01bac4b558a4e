"""Rewards: images and prompts in, one score per image out."""
