"""The process behind `cluster start`, and the folder by which `stop` and `restart` find it."""
