"""An application of FastAPI and SQLAlchemy that enqueues."""
