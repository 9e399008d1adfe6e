//! [`flow`](crate::flow) for Python: what a run remembers stays in the flow's own attributes, where
//! checkpoints, users and CrewAI's own code find it.

use std::sync::Arc;

use pyo3::PyTypeCheck;
use pyo3::exceptions::{PyKeyError, PyRecursionError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PySet, PyString, PyTuple, PyType};

use crate::flow::walk::{Key, Step, Walk, World};
use crate::flow::{Condition, Graph, MAX_DEPTH, Method, Start};

/// A method: its name, whether it is a router, whether it starts, and the conditions for starting
/// and listening.
type Described<'py> = (
    Bound<'py, PyString>,
    bool,
    bool,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
);

/// The methods of a class of flows and what they wait for.
#[pyclass(frozen, module = "crewai_native_tasks._native")]
pub(super) struct FlowGraph {
    graph: Arc<Graph>,
    names: Arc<[Py<PyString>]>,
}

#[pymethods]
impl FlowGraph {
    /// Compiles methods, in the order of their definition: of each its name, whether it is a
    /// router, whether it starts, the condition for that or None, and the one for listening or None.
    #[new]
    fn new(methods: Vec<Described<'_>>) -> PyResult<Self> {
        let mut names = Vec::with_capacity(methods.len());
        let mut compiled = Vec::with_capacity(methods.len());
        for (name, router, starts, start, listen) in methods {
            let start = match start {
                Some(when) => Start::When(condition(&when, 0)?),
                None if starts => Start::Always,
                None => Start::Never,
            };
            compiled.push(Method {
                name: name.to_str()?.to_owned(),
                router,
                start,
                listen: listen.map(|listen| condition(&listen, 0)).transpose()?,
            });
            names.push(name.unbind());
        }
        Ok(Self {
            graph: Arc::new(Graph::new(compiled)),
            names: names.into(),
        })
    }
}

fn condition(value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Condition> {
    if let Ok(event) = value.cast::<PyString>() {
        return Ok(Condition::Event(event.to_str()?.to_owned()));
    }
    if depth == MAX_DEPTH {
        return Err(PyValueError::new_err(format!(
            "a condition is nested deeper than the {MAX_DEPTH} levels that are accepted"
        )));
    }
    let table = value.cast::<PyDict>().map_err(|_| {
        PyTypeError::new_err("a condition is neither a string nor {'and': […]} nor {'or': […]}")
    })?;
    let branches = |branches: Bound<'_, PyAny>| {
        branches
            .try_iter()?
            .map(|branch| condition(&branch?, depth + 1))
            .collect::<PyResult<Vec<_>>>()
    };
    if let Some(all) = table.get_item("and")? {
        Ok(Condition::All(branches(all)?))
    } else if let Some(any) = table.get_item("or")? {
        Ok(Condition::Any(branches(any)?))
    } else {
        Err(PyKeyError::new_err("or"))
    }
}

/// A result, shared by whoever gets it.
type Kept = Arc<Py<PyAny>>;

/// One run of a flow from one start method on.
#[pyclass(module = "crewai_native_tasks._native")]
pub(super) struct FlowWalk {
    walk: Walk<Kept>,
    names: Arc<[Py<PyString>]>,
    flow: Py<PyAny>,
    private: Py<PyDict>,
}

#[pymethods]
impl FlowWalk {
    /// Begins at `start`; `private` are the flow's private attributes.
    #[new]
    fn new(graph: &FlowGraph, flow: Py<PyAny>, private: Py<PyDict>, start: &str) -> PyResult<Self> {
        let methods = graph.graph.methods();
        let Some(at) = methods.iter().position(|method| method.name == start) else {
            return Err(PyKeyError::new_err(format!("{start} is no method")));
        };
        Ok(Self {
            walk: Walk::new(Arc::clone(&graph.graph), at),
            names: Arc::clone(&graph.names),
            flow,
            private,
        })
    }

    /// What comes next: the method to run, a list of methods to run side by side, or None at the
    /// end; whether it is a start; its input; the event that triggered it; how many contexts deep it
    /// runs; and whether the innermost of them begins with it.
    #[allow(clippy::should_implement_trait)]
    fn next<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let mut world = Attributes {
            py,
            names: &self.names,
            flow: self.flow.bind(py),
            private: self.private.bind(py),
        };
        match self.walk.next(&mut world)? {
            Step::Run {
                method,
                input,
                event,
                depth,
                fresh,
            } => (
                self.names[method].bind(py),
                input.is_none(),
                input.as_deref(),
                event.as_deref(),
                depth,
                fresh,
            )
                .into_pyobject(py),
            Step::Group {
                methods,
                input,
                event,
                depth,
            } => {
                let names = methods.iter().map(|&method| self.names[method].bind(py));
                let names = PyList::new(py, names.collect::<Vec<_>>())?;
                (names, false, &*input, event.as_deref(), depth, false).into_pyobject(py)
            }
            Step::Done => (py.None(), false, py.None(), py.None(), 0, false).into_pyobject(py),
        }
    }

    /// Says what the method returned that came next, and the event of its end or None.
    fn ran(&mut self, result: Py<PyAny>, event: Option<Py<PyAny>>) {
        self.walk.ran(Arc::new(result), event.map(Arc::new));
    }

    /// The innermost listener or router that is running, or None.
    fn innermost<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyString>> {
        let method = self.walk.innermost()?;
        Some(self.names[method].bind(py).clone())
    }
}

/// A flow's own attributes as what its run remembers.
struct Attributes<'a, 'py> {
    py: Python<'py>,
    names: &'a [Py<PyString>],
    flow: &'a Bound<'py, PyAny>,
    private: &'a Bound<'py, PyDict>,
}

impl<'py> Attributes<'_, 'py> {
    fn name(&self, method: usize) -> &Bound<'py, PyString> {
        self.names[method].bind(self.py)
    }

    fn attribute<T: PyTypeCheck>(&self, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, T>> {
        match self.private.get_item(name)? {
            Some(value) => Ok(value.cast_into()?),
            None => Err(PyKeyError::new_err(name.clone().unbind())),
        }
    }

    fn fired_set(&self) -> PyResult<Bound<'py, PySet>> {
        self.attribute(intern!(self.py, "_fired_or_listeners"))
    }

    fn pending(&self) -> PyResult<Bound<'py, PyDict>> {
        self.attribute(intern!(self.py, "_pending_events"))
    }

    fn key(&self, key: Key) -> Bound<'py, PyString> {
        match key {
            Key::Listen(method) => self.name(method).clone(),
            Key::Start(method) => PyString::new(self.py, &format!("start:{}", self.name(method))),
        }
    }
}

impl World for Attributes<'_, '_> {
    type Value = Kept;
    type Error = PyErr;

    fn count(&mut self, method: usize) -> PyResult<()> {
        let name = self.name(method);
        let counts: Bound<'_, PyDict> = self.attribute(intern!(self.py, "_method_call_counts"))?;
        let count = match counts.get_item(name)? {
            Some(count) => count.extract::<u64>()? + 1,
            None => 1,
        };
        let most = self.flow.getattr(intern!(self.py, "max_method_calls"))?;
        if most.lt(count)? {
            // CrewAI's words.
            return Err(PyRecursionError::new_err(format!(
                "Method '{name}' has been called {most} times in this flow execution, which \
                 indicates an infinite loop. This commonly happens when a @listen label matches \
                 the method's own name."
            )));
        }
        counts.set_item(name, count)
    }

    fn reopen(&mut self, method: usize) -> PyResult<bool> {
        let completed: Bound<'_, PySet> = self.attribute(intern!(self.py, "_completed_methods"))?;
        completed.discard(self.name(method))
    }

    fn fired(&mut self, listener: usize) -> PyResult<bool> {
        self.fired_set()?.contains(self.name(listener))
    }

    fn set_fired(&mut self, listener: usize, fired: bool) -> PyResult<()> {
        let set = self.fired_set()?;
        if fired {
            set.add(self.name(listener))
        } else {
            set.discard(self.name(listener)).map(drop)
        }
    }

    fn arm_all(&mut self) -> PyResult<()> {
        self.fired_set()?.clear();
        Ok(())
    }

    fn see(&mut self, key: Key, event: &str) -> PyResult<()> {
        let pending = self.pending()?;
        let key = self.key(key);
        let seen = if let Some(seen) = pending.get_item(&key)? {
            seen.cast_into::<PySet>()?
        } else {
            let seen = PySet::empty(self.py)?;
            pending.set_item(&key, &seen)?;
            seen
        };
        seen.add(event)
    }

    fn seen(&mut self, key: Key, event: &str) -> PyResult<bool> {
        match self.pending()?.get_item(self.key(key))? {
            Some(seen) => seen.contains(event),
            None => Ok(false),
        }
    }

    fn forget(&mut self, key: Key) -> PyResult<()> {
        self.pending()?.del_item(self.key(key))
    }

    fn signal(&mut self, result: &Kept) -> PyResult<Option<(String, Kept)>> {
        static ENUM: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let result = result.bind(self.py);
        if result.is_none() {
            return Ok(None);
        }
        let result = if result.is_exact_instance_of::<PyString>() {
            result.clone()
        } else if result.is_instance(ENUM.import(self.py, "enum", "Enum")?)? {
            result.getattr(intern!(self.py, "value"))?
        } else {
            result.clone()
        };
        // No event has what is lost: it comes from a name in a program.
        let event = result.str()?.to_string_lossy().into_owned();
        Ok(Some((event, Arc::new(result.unbind()))))
    }

    fn is_none(&self, result: &Kept) -> bool {
        result.is_none(self.py)
    }

    fn feedback(&mut self) -> PyResult<Option<Kept>> {
        let feedback = self.flow.getattr(intern!(self.py, "last_human_feedback"))?;
        Ok((!feedback.is_none()).then(|| Arc::new(feedback.unbind())))
    }
}
