"""A newsletter: mails to customers, thumbnails of photos, a report. `demo.py` runs it and checks every result."""
