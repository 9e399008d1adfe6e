"""The knowledge storage, alone and against CrewAI's own on Chroma."""

# ruff: noqa: A002, A006 - Chroma calls the argument of an embedder `input`
from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import math
import os
import subprocess
import threading
import uuid

import numpy as np
import pytest
from crewai.knowledge.knowledge import Knowledge
from crewai.knowledge.source.string_knowledge_source import StringKnowledgeSource
from crewai.knowledge.storage import factory
from crewai.rag.chromadb.types import ChromaEmbeddingFunctionWrapper
from crewai.rag.embeddings.providers.custom.embedding_callable import CustomEmbeddingFunction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crewai_native_memory import DamagedStoreError, NativeStorage, embedders, imports, sources
from crewai_native_memory.knowledge import NativeKnowledgeStorage, storage_for

DIMENSIONS = 16


class Embedder(ChromaEmbeddingFunctionWrapper):
    """A unit vector that depends on the words of a text; remembers what it embedded."""

    def __init__(self, dimensions=DIMENSIONS, salt="", **_):
        self.dimensions = dimensions
        self.salt = salt
        self.embedded = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, input):
        assert self.gate.wait(30)
        self.embedded.extend(input)
        return [self.vector(text) for text in input]

    def embed_query(self, input):
        return [self.vector(text) for text in input]

    def vector(self, text):
        total = np.zeros(self.dimensions)
        for word in text.split() or [""]:
            seed = int.from_bytes(hashlib.sha256((self.salt + word).encode()).digest()[:8], "big")
            total += np.random.default_rng(seed).standard_normal(self.dimensions)
        return (total / np.linalg.norm(total)).astype(np.float32)

    @staticmethod
    def name():
        return "words"

    def get_config(self):
        return {"dimensions": self.dimensions, "salt": self.salt}

    @staticmethod
    def build_from_config(config):
        return Embedder(**config)


def knowledge(directory, embedder, collection="crew"):
    storage = NativeKnowledgeStorage(collection_name=collection, directory=directory)
    storage._function = embedder
    return storage


@pytest.fixture
def embedder():
    return Embedder()


@pytest.fixture
def native(tmp_path, embedder):
    return knowledge(tmp_path, embedder)


# --- against CrewAI's own ---------------------------------------------------------------------

WORDS = st.lists(
    st.sampled_from(["ant", "bee", "cat", "dog", "eel", "fox"]), min_size=1, max_size=5
)
TEXTS = WORDS.map(" ".join)


@pytest.fixture(scope="module")
def chroma_place(tmp_path_factory):
    return tmp_path_factory.mktemp("chroma")


@pytest.fixture(scope="module")
def chroma(chroma_place):
    """Makes CrewAI's own knowledge storage with an embedder, for a fresh collection."""
    from chromadb.config import Settings
    from crewai.knowledge.storage.knowledge_storage import KnowledgeStorage
    from crewai.rag.chromadb.config import ChromaDBConfig
    from crewai.rag.factory import create_client

    place = str(chroma_place)

    def make(embedder):
        config = ChromaDBConfig(
            settings=Settings(
                persist_directory=place,
                allow_reset=True,
                is_persistent=True,
                anonymized_telemetry=False,
            ),
            embedding_function=embedder,
        )
        storage = KnowledgeStorage(collection_name=uuid.uuid4().hex)
        storage._client = create_client(config)
        return storage

    return make


def as_data(results):
    return {(r["id"], r["content"], tuple(r["metadata"])) for r in results}


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batches=st.lists(st.lists(TEXTS, max_size=6), min_size=1, max_size=3),
    query=WORDS,
    threshold=st.sampled_from([0.0, 0.35, 0.6, 0.9]),
)
def test_finds_what_crewai_finds(chroma, tmp_path, batches, query, threshold):
    stock = chroma(Embedder())
    ours = knowledge(tmp_path, Embedder(), collection=uuid.uuid4().hex)
    for batch in batches:
        stock.save(list(batch))
        ours.save(list(batch))
    everything = len({text for batch in batches for text in batch})
    for limit in (everything or 1, 2):
        options = {"limit": limit, "score_threshold": threshold}
        expected, found = stock.search(query, **options), ours.search(query, **options)
        scores = [r["score"] for r in found]
        assert scores == pytest.approx([r["score"] for r in expected], abs=1e-5)
        if limit >= everything:  # equal scores at the cut may fall either way
            assert as_data(found) == as_data(expected)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param("stock", marks=pytest.mark.xfail(reason="Chroma's sync client", strict=True)),
        "native",
    ],
)
async def test_async_methods_work(chroma, native, make):
    storage = native if make == "native" else chroma(Embedder())
    await storage.asave(["ant bee", "cat"])
    assert [r["content"] for r in await storage.asearch(["ant", "bee"], limit=1)] == ["ant bee"]
    await storage.areset()
    assert await storage.asearch(["ant"]) == []


async def test_async_saving_leaves_the_event_loop_free(native, embedder):
    embedder.gate.clear()
    saving = asyncio.ensure_future(native.asave(["ant"]))
    await asyncio.sleep(0)
    assert not saving.done()
    embedder.gate.set()
    await saving
    assert embedder.embedded == ["ant"]


# --- skipping what is known -------------------------------------------------------------------


def test_unchanged_sources_are_embedded_once_however_often_they_are_added(native, embedder):
    sources = [StringKnowledgeSource(content=text * 500) for text in ("ant ", "bee ", "cat ")]
    for _ in range(4):  # as at every kickoff, where a source's chunks accumulate
        made = Knowledge(collection_name="crew", sources=sources, storage=native)
        made.add_sources()
    chunks = {chunk for source in sources for chunk in source.chunks}
    assert sum(len(source.chunks) for source in sources) > 3 * len(chunks)
    assert sorted(embedder.embedded) == sorted(chunks)
    assert native._storage.count() == len(chunks)


def test_a_changed_passage_is_embedded(native, embedder):
    native.save(["ant", "bee"])
    native.save(["ant", "bee bee", "bee"])
    assert embedder.embedded == ["ant", "bee", "bee bee"]


def test_another_embedder_embeds_again(native, embedder, tmp_path):
    native.save(["ant"])
    salted = Embedder(salt="salted")
    knowledge(tmp_path, salted).save(["ant"])
    assert salted.embedded == ["ant"]
    same = Embedder(salt="salted")
    again = knowledge(tmp_path, same)
    again.save(["ant"])
    again.save(["ant"])
    assert same.embedded == ["ant"]  # once, to see that it is the same


class Exchanged(Embedder):
    """An embedder whose model cannot be told from outside."""

    def get_config(self):
        return {"dimensions": self.dimensions}


def test_a_model_exchanged_within_an_embedder_is_noticed(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    sources = [["ant bee", "cat"], ["dog eel"], ["fox"]]
    for texts in sources:
        knowledge(tmp_path, Exchanged(salt="one")).save(texts)
    assert caplog.messages == []

    two = Exchanged(salt="two")
    storage = knowledge(tmp_path, two)
    for texts in sources:
        storage.save(texts)
    assert two.embedded == ["ant bee", "ant bee", "cat", "dog eel", "fox"]
    (told,) = caplog.messages
    assert "knowledge collection crew: the embedder Exchanged#" in told
    assert storage._storage.count() == 4
    for word, text in {"bee": "ant bee", "eel": "dog eel", "fox": "fox"}.items():
        assert [r["content"] for r in storage.search([word], limit=1)] == [text]

    again = Exchanged(salt="two")
    storage = knowledge(tmp_path, again)
    for texts in sources:
        storage.save(texts)
    assert again.embedded == ["ant bee"]
    assert len(caplog.messages) == 1


def test_it_is_noticed_where_a_new_source_comes_first(tmp_path):
    knowledge(tmp_path, Exchanged(salt="one")).save(["ant"])
    knowledge(tmp_path, Exchanged(salt="two")).save(["bee"])
    storage = knowledge(tmp_path, two := Exchanged(salt="two"))
    storage.save(["bee"])
    storage.save(["ant"])
    assert two.embedded == ["bee", "ant"]
    assert [r["content"] for r in storage.search(["ant"], limit=1)] == ["ant"]


def test_embedding_anew_goes_on_after_a_failure(tmp_path):
    texts = [f"ant {number}" for number in range(150)]
    knowledge(tmp_path, Exchanged(salt="one")).save(texts)

    class Failing(Exchanged):
        def __call__(self, input):
            if len(self.embedded) > 100:
                raise ConnectionError("the embedder is down")
            return super().__call__(input)

    Failing.__module__, Failing.__qualname__ = Exchanged.__module__, Exchanged.__qualname__
    with pytest.raises(ConnectionError):
        knowledge(tmp_path, Failing(salt="two")).save(texts)
    two = Exchanged(salt="two")
    storage = knowledge(tmp_path, two)
    storage.save(texts)
    assert len(two.embedded) == 51
    assert storage.search(["ant", "7"], limit=1)[0]["score"] == pytest.approx(1)


def test_an_embedder_that_is_not_exact_is_the_same(tmp_path, caplog):
    class Noisy(Exchanged):
        def __call__(self, input):
            noise = np.random.default_rng(len(self.embedded)).standard_normal
            return [vector * (1 + noise(DIMENSIONS) / 256) for vector in super().__call__(input)]

    for _ in range(3):
        noisy = Noisy()
        knowledge(tmp_path, noisy).save(["ant", "bee cat"])
        assert len(noisy.embedded) <= 2
    assert noisy.embedded == ["ant"]
    assert caplog.messages == []


def test_what_was_embedded_before_a_failure_is_kept(native, embedder):
    texts = [f"ant {number}" for number in range(250)]
    calls = []

    def failing(input):
        calls.append(len(input))
        if len(calls) == 3:
            raise ConnectionError("the embedder is down")
        return Embedder()(input)

    failing.get_config = embedder.get_config
    native._function = failing
    with pytest.raises(ConnectionError, match="the embedder is down"):
        native.save(texts)
    native.save(texts)
    assert calls == [100, 100, 50, 50]
    assert native._storage.count() == 250


# --- what CrewAI's own storage holds ----------------------------------------------------------


def test_a_collection_of_crewais_own_storage_is_brought_over(chroma, chroma_place, tmp_path):
    texts = [f"ant {number}" for number in range(1300)]
    stock = chroma(Embedder())
    stock.save(texts)
    embedder = Embedder()
    ours = knowledge(tmp_path, embedder, stock.collection_name)
    source = sources.ChromaSource(chroma_place, f"knowledge_{stock.collection_name}")
    imports.import_first(ours._storage, lambda: source)
    query = ["ant", "77"]
    found, expected = (s.search(query, limit=3, score_threshold=0) for s in (ours, stock))
    assert as_data(found) == as_data(expected)
    assert ours._storage.count() == 1300
    ours.save(texts[:2])  # whose vectors they were is unknown
    assert embedder.embedded == texts[:2]
    nobody = knowledge(tmp_path, Embedder(), "nobody")
    missing = sources.ChromaSource(chroma_place, "knowledge_nobody")
    imports.import_first(nobody._storage, lambda: missing)
    assert nobody.search(["ant"]) == []


def test_a_reset_deletes_the_collection_that_was_brought_over(chroma, chroma_place, tmp_path):
    stock, other = chroma(Embedder()), chroma(Embedder())
    for storage in (stock, other):
        storage.save(["ant"])
    ours = knowledge(tmp_path, Embedder(), stock.collection_name)
    source = sources.ChromaSource(chroma_place, f"knowledge_{stock.collection_name}")
    imports.reset_with(ours._storage, lambda: source)
    imports.import_first(ours._storage, lambda: source)
    assert ours._storage.count() == 1
    ours.reset()
    assert source.open()[0] == 0
    assert len(other.search(["ant"], score_threshold=0)) == 1
    source.erase()


def test_passages_without_a_usable_vector_or_text_do_not_stop_the_others(tmp_path, monkeypatch):
    class Collection:
        def count(self):
            return 4

        def get(self, limit, offset, include):
            return {
                "ids": ["a", "b", "c", "d"][offset:],
                "documents": ["one", "\udfff", None, "four"],
                "metadatas": [None, None, {"n": 1}, None],
                "embeddings": np.array([[1, 2], [3, 4], [5, 6], [np.nan, 8]], np.float32),
            } | ({} if offset == 0 else {"ids": []})

    source = sources.ChromaSource(tmp_path, "c")
    monkeypatch.setattr(source, "open", lambda: (4, source._batches(Collection())))
    storage = NativeStorage(tmp_path / "a.db")
    report = imports.bring(storage, source)
    found = {record.id: (record.content, record.embedding) for record in storage.list_records()}
    assert found == {"a": ("one", [1, 2]), "c": ("", [5, 6]), "d": ("four", None)}
    assert (report.imported, list(report.left), report.bare) == (3, ["b"], 1)


def test_it_is_looked_for_where_crewai_keeps_it(crewai_home):
    assert storage_for(None, "crew")._storage._first is None
    crewai_home.mkdir(exist_ok=True)
    (crewai_home / "chroma.sqlite3").write_bytes(b"")
    assert storage_for(None, "crew")._storage._first is not None
    assert storage_for(None, "crew", bring=False)._storage._first is None


# --- collections, errors ----------------------------------------------------------------------


def test_collections_are_apart_even_where_their_names_differ_in_punctuation(tmp_path, embedder):
    names = ["Data analyst", "Data_analyst", "data analyst", "a" * 200, "a" * 201, None, "../up"]
    for number, name in enumerate(names):
        knowledge(tmp_path, embedder, name).save([f"ant {number}"])
    for number, name in enumerate(names):
        found = knowledge(tmp_path, embedder, name).search(["ant"], limit=9, score_threshold=0)
        assert [r["content"] for r in found] == [f"ant {number}"]
    knowledge(tmp_path, embedder, "Data analyst").reset()
    assert knowledge(tmp_path, embedder, "Data_analyst").search(["ant"]) != []
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*.db"))


def test_another_dimension_is_a_mismatch_until_the_collection_is_reset(native, tmp_path):
    native.save(["ant"])
    wider = knowledge(tmp_path, Embedder(dimensions=8))
    with pytest.raises(ValueError, match=r"(?i)dimension mismatch.*reset-memories"):
        wider.save(["bee"])
    with pytest.raises(ValueError, match=r"(?i)dimension mismatch"):
        wider.search(["ant"])
    wider.reset()
    wider.save(["bee"])
    assert [r["content"] for r in wider.search(["bee"])] == ["bee"]


def test_what_goes_wrong_while_searching_is_told(native, embedder, tmp_path):
    native.save(["ant"])
    native._storage.close()
    path = tmp_path / native._storage.path
    path.write_bytes(b"not a store" * 1000)
    with pytest.raises(DamagedStoreError, match=path.name):
        native.search(["ant"])


def test_nothing_is_embedded_to_search_nothing(native, embedder):
    embedder.vector = None  # would fail
    assert native.search(["ant"]) == []
    assert native.search([]) == []
    native.save([])
    assert embedder.embedded == []


def test_documents_must_be_strings(native):
    with pytest.raises(ValueError, match=r"documents\[1\] must be a string, got int"):
        native.save(["ant", 5])


def test_an_embedder_that_gives_too_few_vectors_is_named(native):
    native._function = lambda input: []
    with pytest.raises(ValueError, match="gave 0 vectors for 1 texts"):
        native.save(["ant"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "gave 0 vectors for 1 texts"),
        (None, "gave NoneType for 1 texts"),
        ([None], "gave NoneType for a vector"),
    ],
)
async def test_an_embedder_that_gives_no_vector_for_a_query_is_named(native, given, told):
    native.save(["ant"])
    native._function = lambda input: given
    with pytest.raises(ValueError, match=f"the embedder .*{told}"):
        await asyncio.wait_for(native.asearch(["ant"]), 30)


async def test_whoever_awaits_an_embedder_that_stops_is_told(native):
    native.save(["ant"])

    def stops(texts):
        return [next(iter(())) for _ in texts]

    native._function = stops
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(native.asearch(["ant"]), 30)


# --- what CrewAI hands over -------------------------------------------------------------------


def test_crewai_builds_knowledge_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(factory, "_factory", storage_for)

    class Custom(Embedder, CustomEmbeddingFunction):
        pass

    config = {"provider": "custom", "config": {"embedding_callable": Custom}}
    made = Knowledge(
        collection_name="crew", sources=[StringKnowledgeSource(content="ant")], embedder=config
    )
    made.add_sources()
    assert isinstance(made.storage, NativeKnowledgeStorage)
    assert [r["content"] for r in made.query(["ant"])] == ["ant"]
    assert made.model_dump(mode="json")["storage"] == {}  # as with CrewAI's own, in checkpoints


def test_a_bad_embedder_configuration_is_told_at_once():
    with pytest.raises(ValueError, match="Unknown provider"):
        storage_for({"provider": "nobody", "config": {}}, "crew")


def test_an_application_that_registered_a_chroma_client_keeps_it(monkeypatch):
    from crewai.rag import factory as rag

    monkeypatch.setitem(rag._factories, "chromadb", lambda config: None)
    assert storage_for(None, "crew") is None


def test_an_application_that_configured_another_place_keeps_it():
    from chromadb.config import Settings
    from crewai.rag.chromadb.config import ChromaDBConfig
    from crewai.rag.config import utils

    elsewhere = ChromaDBConfig(
        settings=Settings(persist_directory="elsewhere"), embedding_function=Embedder()
    )
    default = ChromaDBConfig(embedding_function=Embedder(salt="mine"))
    for config, served in ((elsewhere, False), (default, True)):
        token = utils._rag_context.set(utils.RagContext(config=config))
        try:
            storage = storage_for(None, "crew")
            assert (storage is not None) is served
            if storage is not None:
                assert storage._embed is config.embedding_function
        finally:
            utils._rag_context.reset(token)


# --- identity of an embedder ------------------------------------------------------------------


class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __call__(self, input):
        return [[0.0] for _ in input]


def test_identity_tells_models_apart_and_hides_secrets():
    base = embedders.identity(Holder(model_name="m", api_key="secret"))
    assert base == embedders.identity(Holder(model_name="m", api_key="other", timeout=3))
    assert base != embedders.identity(Holder(model_name="n", api_key="secret"))
    assert base.startswith("Holder[m]#")
    assert "secret" not in base


def make_function(model, calls=0):
    return lambda input: [model, calls, input]


def embed(input, model):
    return [model, input]


class OnServer(Holder):
    def get_config(self):
        return vars(self)


@pytest.mark.parametrize(
    "make",
    [
        make_function,
        lambda model: make_function(make_function(model)),
        lambda model: lambda input, model=model: [model, input],
        lambda model: functools.partial(embed, model=model),
        lambda model: functools.partial(make_function(model)),
        lambda model: Holder(base_model=model).__call__,
        lambda model: Holder(base_model=model),
        lambda model: Holder(modelName=model, retrieval_query="q"),
        lambda model: Holder(config={"model": model}),
        lambda model: Holder(config={"options": {"embedding_type": model}}),
        lambda model: Holder(function=make_function(model)),
        lambda model: Holder(model="m", dimensions=len(model)),
        lambda model: OnServer(url=f"http://{model}:80"),
    ],
)
def test_identity_tells_settings_apart(make):
    one, other = embedders.identity(make("bge")), embedders.identity(make("gte-large"))
    assert one != other
    assert one == embedders.identity(make("bge"))


@pytest.mark.filterwarnings("ignore:The class WatsonXEmbeddingFunction:DeprecationWarning")
def test_identity_sees_the_model_of_watsonx():
    from crewai.rag.embeddings.providers.ibm.embedding_callable import WatsonXEmbeddingFunction

    for model in ("one", "two"):
        embedder = WatsonXEmbeddingFunction(model_id=model, api_key="k", url="http://x")
        assert embedders.identity(embedder).startswith(f"WatsonXEmbeddingFunction[{model}]#")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Holder(model="m", calls=1, cost=0.5), Holder(model="m", calls=2, cost=0.7)),
        (Holder(model="m", ready=False), Holder(model="m", ready=True)),
        (Holder(model="m", last_text="a"), Holder(model="m", last_text="b")),
        (Holder(model="m", base_url="http://a"), Holder(model="m", base_url="http://b")),
        (Holder(url="http://me:pw@a"), Holder(url="http://me:changed@a")),
        (Holder(config={"apiKey": "a"}), Holder(config={"apiKey": "b"})),
        (Holder(credentials={"name": "a"}), Holder(credentials={"name": "b"})),
        (
            Holder(known={str(number): "a" for number in range(99)}),
            Holder(known={str(number): "b" for number in range(99)}),
        ),
        (make_function("m", 1), make_function("m", 2)),
        (OnServer(model="m", device="cpu"), OnServer(model="m", device="cuda")),
    ],
)
def test_identity_goes_by_nothing_else(one, other):
    assert embedders.identity(one) == embedders.identity(other)


def test_identity_of_an_object_stays():
    embedder = Holder(model="m")
    name = embedders.identity(embedder)
    embedder.model = "n"
    assert embedders.identity(embedder) == name
    assert embedders.identity(Holder(model="n")) != name
    key = id(embedder)
    assert key in embedders._names
    del embedder
    assert key not in embedders._names


def test_identity_of_what_cannot_be_watched_or_hashed():
    class Slots:
        __slots__ = ()
        __hash__ = None

        def __call__(self, input):
            return input

    assert embedders.identity(Slots()) == embedders.identity(Slots())
    assert embedders.identity(math.sin) != embedders.identity(math.cos)
    knot = Holder(model="m")
    knot.function = knot.__call__
    assert embedders.identity(knot).startswith("Holder[m]#")


def test_identity_of_a_function_is_that_of_other_processes(script):
    code = """
from crewai_native_memory import embedders
def words(texts):
    kept = {one for text in texts for one in text if one in {"a", "b", "c", "d"}}
    return [[float(text in kept)] for text in texts]
print(embedders.identity(words))
"""
    names = {
        subprocess.run(
            script(code),
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "123"
    }
    assert len(names) == 1


def test_identity_tells_functions_apart():
    functions = [lambda input: [[0.0]] * len(input), lambda input: [[1.0]] * len(input)]
    assert len({embedders.identity(function) for function in functions}) == 2
    assert embedders.identity(math.sin) == embedders.identity(math.sin)


def test_a_query_is_embedded_as_a_query():
    class Asymmetric:
        def __call__(self, input):
            return [np.array([1.0, 0.0])] * len(input)

        def embed_query(self, input):
            return [np.array([0.0, 1.0])] * len(input)

    assert list(embedders.query_vector(Asymmetric(), "q")) == [0.0, 1.0]
    assert list(embedders.vectors(Asymmetric(), ["d"])[0]) == [1.0, 0.0]
