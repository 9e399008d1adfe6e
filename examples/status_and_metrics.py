"""Look at who serves each slot, and at what the slots have done.

python examples/status_and_metrics.py
"""

import tempfile

from crewai import Memory

import crewai_native
from crewai_native.testing import HashEmbedder, ScriptedLLM

status = crewai_native.status()
print(f"active: {status.active} ({status.reason}), CrewAI {status.crewai}")
for slot in status.slots:
    print(f"  {slot.slot:24} {slot.state:8} {slot.provider} {slot.version}: {slot.reason}")

# How it was decided, step by step.
for candidate in status["memory.storage"].candidates:
    for step in candidate.steps:
        print(f"  {candidate.distribution}: {step.name}: {step.detail}")

memory = Memory(llm=ScriptedLLM(), embedder=HashEmbedder(), storage=tempfile.mkdtemp())
memory.remember("The archive closes at noon.", scope="/hours", categories=["fact"], importance=0.5)
memory.recall("When does the archive close?", depth="shallow")
memory.close()

for metrics in crewai_native.metrics():
    if metrics.calls:
        print(
            f"  {metrics.slot}: {metrics.calls} calls, {metrics.errors} errors, "
            f"{metrics.fallbacks} fallbacks, median {metrics.p50 * 1e6:.0f} microseconds"
        )

bound = [slot.slot for slot in status.slots if slot.state == crewai_native.State.BOUND]
called = {metrics.slot for metrics in crewai_native.metrics() if metrics.calls}
assert ("memory.storage" in bound) == ("memory.storage" in called)
