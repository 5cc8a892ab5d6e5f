"""The jobs of the orders: a node imports every module of this package."""
