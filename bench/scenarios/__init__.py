"""One module for each question. `run` measures rounds, with all variants in each, and fills the results."""
