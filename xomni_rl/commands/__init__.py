"""The commands of `xomni-rl`, one module per job; heavy imports happen inside the functions."""
