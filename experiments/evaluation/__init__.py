"""Benchmark protocols over images of any generator: suites, their prompts, counts, statistics; `xomni-rl evaluate`."""
