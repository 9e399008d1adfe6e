"""CrewAI kickoffs on a Celery cluster."""
