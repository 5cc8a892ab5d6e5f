"""A shop with five jobs that run by themselves, one for each way in which a schedule goes on."""
