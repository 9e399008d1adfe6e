"""Checkpoints of running crews, flows and agents, of which each stores what changed.

Data flows one way: :mod:`~crewai_native_db.checkpoints.writer` is told that a checkpoint is due,
:mod:`~crewai_native_db.checkpoints.recorder` turns the live objects into texts, which a thread puts
into a file of ours, and :mod:`~crewai_native_db.checkpoints.places` puts an outline
(:mod:`~crewai_native_db.checkpoints.outline`) where CrewAI's commands look. To restore,
:mod:`~crewai_native_db.checkpoints.assembly` makes the text that CrewAI would have written.
"""
