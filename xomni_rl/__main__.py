"""`python -m xomni_rl` is `xomni-rl`."""

from xomni_rl.cli import main

if __name__ == "__main__":
    main()
