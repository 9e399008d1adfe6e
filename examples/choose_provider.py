"""Choose who serves a slot: for a block, for the process, or not at all.

python examples/choose_provider.py
"""

import crewai

import crewai_native

slot = "memory.storage"
before = crewai_native.status()[slot].provider
print(f"CrewAI {crewai.__version__} was imported; {slot} is served by {before}")

# For a block, process-wide. A memory keeps the storage that it was opened with.
with crewai_native.using({slot: "stock"}) as status:
    assert status[slot].provider == "stock"
assert crewai_native.status()[slot].provider == before

# For the process. What is given in code goes before environment and pyproject.toml.
status = crewai_native.activate(slots={slot: "stock"})
print(f"{slot}: {status[slot].provider}, because: {status[slot].reason}")
assert status[slot].provider == "stock"

# Whoever asks for what is not there is told so, and told what there is.
try:
    crewai_native.activate(slots={slot: "acme-memory"})
except crewai_native.ConfigurationError as error:
    print(f"refused: {error}")
else:
    raise AssertionError("a provider that is not installed was accepted")

# Not at all: CrewAI is exactly what it was before crewai-native came.
crewai_native.deactivate()
assert not crewai_native.status().active

crewai_native.activate()
assert crewai_native.status()[slot].provider == before
