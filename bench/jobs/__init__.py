"""The jobs that the benchmark's nodes perform. A node is given one module at a time, so it looks at that table only."""
