"""The jobs of the newsletter: a node imports every module of this package."""
