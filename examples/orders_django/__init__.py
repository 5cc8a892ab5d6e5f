"""An application of Django that enqueues: project and app in one package."""
