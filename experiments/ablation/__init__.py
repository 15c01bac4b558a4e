"""Sweeps of runs that are finished, compared and drawn; `xomni-rl ablate` and `xomni-rl compare`."""
