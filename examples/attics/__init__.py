"""Recordings of concerts, collected for each band by a job, and a dashboard that calls bands by their names."""
