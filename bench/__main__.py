"""`python -m bench`."""

from bench.cli import main

# Guarded: the clients of the benchmark are spawned, and each imports this module again.
if __name__ == "__main__":
    main()
