"""Batches of kickoffs on a Celery cluster: the engine ``celery`` of ``map_crew``.

Importing this package imports neither CrewAI nor Celery.
"""

from crewai_native_celery.errors import KickoffError, TargetError, WorkerLostError

__all__ = ["KickoffError", "TargetError", "WorkerLostError"]
