"""A crew that reads the Constitution of the United States, on stock CrewAI and accelerated.

Run as ``python -m crewai_native.demo``, from the source tree or from installed wheels. Offline:
language model and embedder are the deterministic ones of :mod:`crewai_native.testing`.

The text in ``constitution.txt`` is the Constitution with its twenty-seven amendments. It is in the
public domain, as works of the government of the United States are.

The parts, in the order in which data flows through them:

* :mod:`~crewai_native.demo.constitution` cuts the text into paragraphs;
* :mod:`~crewai_native.demo.crew` is an ordinary CrewAI program, which knows nothing of us;
* :mod:`~crewai_native.demo.script` says what the scripted model answers;
* :mod:`~crewai_native.demo.phases` is what is timed and compared, :mod:`~crewai_native.demo.checks`
  what stock CrewAI loses or leaks;
* :mod:`~crewai_native.demo.worker` does both in a process of its own, one for each side;
* :mod:`~crewai_native.demo.run` drives the workers, :mod:`~crewai_native.demo.report` prints.
"""
