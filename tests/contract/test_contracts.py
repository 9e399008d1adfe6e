"""The contracts of every slot, for every provider that is installed here and for stock."""

from crewai_native.slots import SLOT_NAMES
from crewai_native.testing.contract.test_checkpoint_writer import TestCheckpointWriter
from crewai_native.testing.contract.test_flow_persistence import TestFlowPersistence
from crewai_native.testing.contract.test_knowledge_storage import TestKnowledgeStorage
from crewai_native.testing.contract.test_locks import TestLocks
from crewai_native.testing.contract.test_memory_storage import TestMemoryStorage
from crewai_native.testing.contract.test_replay_store import TestReplayStore
from crewai_native.testing.contract.test_serialization_events import TestSerializationEvents
from crewai_native.testing.contract.test_serialization_messages import TestSerializationMessages
from crewai_native.testing.contract.test_tasks_batch import TestTasksBatch
from crewai_native.testing.contract.test_tasks_control import TestTasksControl
from crewai_native.testing.contract.test_tasks_executor import TestTasksExecutor
from crewai_native.testing.contract.test_tasks_graph import TestTasksGraph
from crewai_native.testing.contract.test_tools_cache import TestToolsCache
from crewai_native.testing.contract.test_tools_guard import TestToolsGuard
from crewai_native.testing.contract.test_tools_schemas import TestToolsSchemas

CONTRACTS = [
    TestMemoryStorage,
    TestKnowledgeStorage,
    TestToolsGuard,
    TestToolsCache,
    TestToolsSchemas,
    TestTasksBatch,
    TestTasksGraph,
    TestTasksControl,
    TestTasksExecutor,
    TestFlowPersistence,
    TestCheckpointWriter,
    TestReplayStore,
    TestLocks,
    TestSerializationEvents,
    TestSerializationMessages,
]


def test_every_slot_has_a_contract():
    assert [contract.slot for contract in CONTRACTS] == list(SLOT_NAMES)
