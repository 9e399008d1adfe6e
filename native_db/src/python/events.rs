//! The events of a run as JSON text, and how they are connected.
//!
//! Pydantic dumps an event, too, and is what decides on its form. Most events hold only values that
//! have one form whoever writes them: those are written here, in a fraction of the time and without
//! making an object. Which fields can be, the caller says of each class, after looking at what
//! pydantic makes of it. An event with any other value in it is left to pydantic.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};

use super::watch::DEEPEST;

/// What is written of a field, if that is what is in it.
enum Shape {
    /// Nothing of any value.
    Nothing,
    /// Any of the others but for times.
    Any,
    Null,
    Text,
    Int,
    Float,
    Bool,
    Time,
    List(Box<Self>),
    /// With texts as keys.
    Dict(Box<Self>),
    Either(Vec<Self>),
    /// Some objects, by what is written of them.
    Member(Vec<(Py<PyAny>, Vec<u8>)>),
}

/// A field: the name, the name as JSON with a colon, what is written of its values.
type Field = (Py<PyString>, Vec<u8>, Shape);

/// The fields of a class.
type Plan = Vec<Field>;

/// A class, and its plan unless its objects are not written here.
type Known = (Py<PyType>, Option<Arc<Plan>>);

/// How many edges of each kind an event has.
type Ends = Vec<(String, usize)>;

#[derive(Default)]
struct Wiring {
    known: HashMap<String, Ends>,
    /// What becomes known with the segment that is about to be written.
    found: Found,
}

#[derive(Default)]
struct Found {
    /// Of the new events, as JSON.
    edges: Vec<Vec<u8>>,
    /// What the old ones have got, as JSON without the brackets around it.
    grown: Vec<u8>,
    /// The new ones, in their order, and those of the old ones that have got something.
    seen: Vec<(String, Ends)>,
}

/// What is in a field of the objects of a class: the address of the class, the field, whether it is
/// a list, the addresses of the objects.
type Content = (usize, String, bool, Vec<usize>);

/// What is written for it, and the objects, which are kept.
type Reference = (Vec<u8>, Py<PyList>);

/// The events of a run.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct Events {
    /// Says of a class how its events are written: see [`shape`].
    plan: Py<PyAny>,
    /// By the address of the class, which is kept.
    plans: Mutex<HashMap<usize, Known>>,
    wiring: Mutex<Wiring>,
    references: Mutex<HashMap<Content, Reference>>,
}

#[pymethods]
impl Events {
    #[new]
    fn new(plan: Py<PyAny>) -> Self {
        Self {
            plan,
            plans: Mutex::default(),
            wiring: Mutex::default(),
            references: Mutex::default(),
        }
    }

    /// An event as JSON, and the fields that are not in it, as their values are not of their shapes;
    /// nothing where all of it is left to pydantic.
    #[expect(clippy::type_complexity, reason = "what is written, what is not")]
    fn text<'py>(
        &self,
        event: &Bound<'py, PyAny>,
    ) -> PyResult<Option<(Bound<'py, PyBytes>, Vec<Bound<'py, PyAny>>)>> {
        let py = event.py();
        let Some(plan) = self.plan(&event.get_type())? else {
            return Ok(None);
        };
        let fields = event.getattr(intern!(py, "__dict__"))?;
        let mut out = Vec::with_capacity(1024);
        let left = write_event(&mut out, fields.cast()?, &plan)?;
        Ok(left.map(|left| (PyBytes::new(py, &out), left)))
    }

    /// Takes `text` for what belongs into a field of any event of a class in which there are those
    /// objects, as a list if `many`: `rest` is not asked for it any more.
    fn refer(
        &self,
        class: &Bound<'_, PyType>,
        field: String,
        items: Bound<'_, PyList>,
        many: bool,
        text: Vec<u8>,
    ) {
        let addresses = items.iter().map(|item| item.as_ptr() as usize).collect();
        let content = (class.as_ptr() as usize, field, many, addresses);
        let before = self
            .references
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(content, (text, items.unbind()));
        // What is let go of may run Python code, and that must not wait for the lock.
        drop(before);
    }

    /// Finds the connections of the events after the first `known`, and those that the ones before
    /// have got since they were written; says how many new ones there are. Only a new event gives an
    /// older one an edge, and has one back. Nothing may be added meanwhile.
    fn wire(&self, nodes: &Bound<'_, PyDict>, known: usize) -> PyResult<usize> {
        let mut found = Found::default();
        let mut targeted = Vec::new();
        for (name, node) in nodes.iter().skip(known) {
            let (mut text, mut counts) = (vec![b'{'], Ends::new());
            for (kind, targets) in edges_of(&node)?.iter() {
                let (kind, targets) = (kind.cast_into::<PyString>()?, targets.cast::<PyList>()?);
                if text.len() > 1 {
                    text.push(b',');
                }
                quote(&mut text, kind.to_str()?)?;
                text.push(b':');
                write_ids(&mut text, targets, 0)?;
                counts.push((kind.to_str()?.to_owned(), targets.len()));
                targeted.extend(targets.iter());
            }
            text.push(b'}');
            found.edges.push(text);
            let name = name.cast_into::<PyString>()?;
            found.seen.push((name.to_str()?.to_owned(), counts));
        }
        let mut ends = BTreeSet::new();
        {
            let wiring = self.wiring.lock().unwrap_or_else(PoisonError::into_inner);
            for target in &targeted {
                let target = target.cast::<PyString>()?.to_str()?;
                if wiring.known.contains_key(target) {
                    ends.insert(target.to_owned());
                }
            }
        }
        let count = found.edges.len();
        self.grow(nodes, &ends, &mut found)?;
        self.wiring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .found = found;
        Ok(count)
    }

    /// The segment of the new events, whose connections `wire` has found and which are known from
    /// then on: `{"nodes": [[id, event, what belongs into its fields, edges], …], "edges": [[id,
    /// kind, start, ids from there on], …]}`.
    ///
    /// What is not written here `rest` is asked for, with the event and the fields that are not in
    /// its text, or nothing where it has none: it returns the text, or nothing to keep that one, and
    /// what belongs into the fields, both as JSON.
    fn segment<'py>(
        &self,
        events: &Bound<'py, PyList>,
        rest: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let py = events.py();
        let found = {
            let mut wiring = self.wiring.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut wiring.found)
        };
        if events.len() != found.edges.len() {
            return Err(PyValueError::new_err(format!(
                "of {} events the connections of {} are known",
                events.len(),
                found.edges.len()
            )));
        }
        let mut out = Vec::with_capacity(1024 * (1 + events.len()));
        out.extend_from_slice(b"{\"nodes\":[");
        for (index, event) in events.iter().enumerate() {
            out.extend_from_slice(if index > 0 { b",[" } else { b"[" });
            quote(&mut out, &found.seen[index].0)?;
            out.push(b',');
            self.write_whole(&mut out, &event, rest)?;
            out.push(b',');
            out.extend_from_slice(&found.edges[index]);
            out.push(b']');
        }
        out.extend_from_slice(b"],\"edges\":[");
        out.extend_from_slice(&found.grown);
        out.extend_from_slice(b"]}");
        self.wiring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .known
            .extend(found.seen);
        Ok(PyBytes::new(py, &out))
    }
}

impl Events {
    fn plan(&self, class: &Bound<'_, PyType>) -> PyResult<Option<Arc<Plan>>> {
        let key = class.as_ptr() as usize;
        let known = self
            .plans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .map(|(_, plan)| plan.clone());
        if let Some(plan) = known {
            return Ok(plan);
        }
        let said: Option<Vec<(Bound<'_, PyString>, Bound<'_, PyAny>)>> =
            self.plan.bind(class.py()).call1((class,))?.extract()?;
        let plan = said
            .map(|fields| {
                fields
                    .into_iter()
                    .map(|(name, said)| {
                        let mut before = Vec::new();
                        quote(&mut before, name.to_str()?)?;
                        before.push(b':');
                        Ok((name.unbind(), before, shape(&said)?))
                    })
                    .collect::<PyResult<Plan>>()
            })
            .transpose()?
            .map(Arc::new);
        self.plans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, (class.clone().unbind(), plan.clone()));
        Ok(plan)
    }

    /// Writes an event, and what belongs into its fields.
    fn write_whole(
        &self,
        out: &mut Vec<u8>,
        event: &Bound<'_, PyAny>,
        rest: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let start = out.len();
        let mut left = None;
        if let Some(plan) = self.plan(&event.get_type())? {
            let fields = event.getattr(intern!(event.py(), "__dict__"))?;
            let fields = fields.cast()?;
            left = write_event(out, fields, &plan)?;
            if let Some(left) = &left
                && self.write_references(out, &event.get_type(), fields, left)?
            {
                return Ok(());
            }
        }
        let (text, fields): (Option<PyBackedBytes>, PyBackedBytes) =
            rest.call1((event, left))?.extract()?;
        if let Some(text) = text {
            out.truncate(start);
            out.extend_from_slice(&text);
        }
        out.push(b',');
        out.extend_from_slice(&fields);
        Ok(())
    }

    /// Writes what belongs into fields, if it is known of all of them, after a comma; says whether
    /// it is, or else leaves nothing behind.
    fn write_references(
        &self,
        out: &mut Vec<u8>,
        class: &Bound<'_, PyType>,
        fields: &Bound<'_, PyDict>,
        left: &[Bound<'_, PyAny>],
    ) -> PyResult<bool> {
        let start = out.len();
        out.extend_from_slice(b",{");
        for (index, field) in left.iter().enumerate() {
            let Some(value) = fields.get_item(field)? else {
                out.truncate(start);
                return Ok(false);
            };
            let list = value.cast_exact::<PyList>().ok();
            let items = match list {
                Some(list) => list.iter().map(|item| item.as_ptr() as usize).collect(),
                None => vec![value.as_ptr() as usize],
            };
            let field: String = field.extract()?;
            let content = (class.as_ptr() as usize, field, list.is_some(), items);
            let references = self
                .references
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let Some((text, _)) = references.get(&content) else {
                out.truncate(start);
                return Ok(false);
            };
            if index > 0 {
                out.push(b',');
            }
            quote(out, &content.1)?;
            out.push(b':');
            out.extend_from_slice(text);
        }
        Ok(plain(out, b"}"))
    }

    /// Finds the edges that known events have got of new ones, which have one to each of `ends`.
    fn grow(
        &self,
        nodes: &Bound<'_, PyDict>,
        ends: &BTreeSet<String>,
        found: &mut Found,
    ) -> PyResult<()> {
        let touched: Vec<_> = {
            let wiring = self.wiring.lock().unwrap_or_else(PoisonError::into_inner);
            let known = ends
                .iter()
                .filter_map(|name| wiring.known.get_key_value(name));
            known
                .map(|(name, ends)| (name.clone(), ends.clone()))
                .collect()
        };
        for (name, mut known) in touched {
            let Some(node) = nodes.get_item(&name)? else {
                continue;
            };
            for (kind, targets) in edges_of(&node)?.iter() {
                let (kind, targets) = (kind.cast_into::<PyString>()?, targets.cast::<PyList>()?);
                let kind = kind.to_str()?;
                let before = known.iter_mut().find(|(known, _)| known == kind);
                let start = before.as_ref().map_or(0, |(_, count)| *count);
                if targets.len() <= start {
                    continue;
                }
                let out = &mut found.grown;
                out.extend_from_slice(if out.is_empty() { b"[" } else { b",[" });
                quote(out, &name)?;
                out.push(b',');
                quote(out, kind)?;
                out.extend_from_slice(format!(",{start},").as_bytes());
                write_ids(out, targets, start)?;
                out.push(b']');
                match before {
                    Some((_, count)) => *count = targets.len(),
                    None => known.push((kind.to_owned(), targets.len())),
                }
            }
            found.seen.push((name, known));
        }
        Ok(())
    }
}

/// How a field is written: the name of a shape, or `("list", shape)`, `("dict", shape)`,
/// `("either", shape, …)` or `("member", (object, text), …)`.
fn shape(said: &Bound<'_, PyAny>) -> PyResult<Shape> {
    if let Ok(name) = said.extract::<&str>() {
        return Ok(match name {
            "nothing" => Shape::Nothing,
            "any" => Shape::Any,
            "null" => Shape::Null,
            "text" => Shape::Text,
            "int" => Shape::Int,
            "float" => Shape::Float,
            "bool" => Shape::Bool,
            "time" => Shape::Time,
            _ => return Err(PyValueError::new_err(format!("{name:?} is no shape"))),
        });
    }
    let parts = said.cast::<PyTuple>()?;
    let name = parts.get_item(0)?;
    if name.extract::<&str>()? == "member" {
        let members = parts.iter().skip(1).map(|part| {
            let (member, text): (Py<PyAny>, String) = part.extract()?;
            let mut out = Vec::new();
            quote(&mut out, &text)?;
            Ok((member, out))
        });
        return Ok(Shape::Member(members.collect::<PyResult<_>>()?));
    }
    let mut inner = parts
        .iter()
        .skip(1)
        .map(|part| shape(&part))
        .collect::<PyResult<Vec<_>>>()?;
    match (name.extract::<&str>()?, inner.len()) {
        ("either", _) => Ok(Shape::Either(inner)),
        ("list", 1) => Ok(Shape::List(Box::new(inner.swap_remove(0)))),
        ("dict", 1) => Ok(Shape::Dict(Box::new(inner.swap_remove(0)))),
        (name, count) => Err(PyValueError::new_err(format!(
            "{name:?} of {count} is no shape"
        ))),
    }
}

/// The ids at the other ends of a node's edges, by their kind.
fn edges_of<'py>(node: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    let edges = node.getattr(intern!(node.py(), "edges"))?;
    Ok(edges.cast_into()?)
}

/// Writes the ids in a list from a position on.
fn write_ids(out: &mut Vec<u8>, ids: &Bound<'_, PyList>, start: usize) -> PyResult<()> {
    out.push(b'[');
    for index in start..ids.len() {
        if index > start {
            out.push(b',');
        }
        quote(out, ids.get_item(index)?.cast::<PyString>()?.to_str()?)?;
    }
    out.push(b']');
    Ok(())
}

/// Writes an event; says which fields it could not, or nothing if it is not of its plan.
fn write_event<'py>(
    out: &mut Vec<u8>,
    fields: &Bound<'py, PyDict>,
    plan: &Plan,
) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
    if fields.len() != plan.len() {
        return Ok(None);
    }
    let mut left = Vec::new();
    out.push(b'{');
    let begin = out.len();
    // In the order of the dict, as pydantic does, which is nearly always that of the class.
    for (index, (name, value)) in fields.iter().enumerate() {
        let here = plan.get(index).filter(|(known, ..)| name.is(known));
        let found = match here {
            Some(field) => Some(field),
            None => find(plan, &name)?,
        };
        let Some((_, before, shape)) = found else {
            return Ok(None);
        };
        if matches!(shape, Shape::Nothing) {
            continue;
        }
        let start = out.len();
        if start > begin {
            out.push(b',');
        }
        out.extend_from_slice(before);
        if !write(out, &value, shape, 0)? {
            out.truncate(start);
            left.push(name);
        }
    }
    out.push(b'}');
    Ok(Some(left))
}

fn find<'a>(plan: &'a Plan, name: &Bound<'_, PyAny>) -> PyResult<Option<&'a Field>> {
    for field in plan {
        if name.eq(&field.0)? {
            return Ok(Some(field));
        }
    }
    Ok(None)
}

/// Writes a value of a shape; says whether it is of it, or else leaves something behind. No Python
/// code runs, so nothing changes meanwhile.
fn write(
    out: &mut Vec<u8>,
    value: &Bound<'_, PyAny>,
    shape: &Shape,
    depth: usize,
) -> PyResult<bool> {
    match shape {
        Shape::Nothing => Ok(true),
        Shape::Any => write_any(out, value, depth),
        Shape::Null => Ok(value.is_none() && plain(out, b"null")),
        Shape::Text => match value.cast_exact::<PyString>() {
            Ok(text) => write_text(out, text),
            Err(_) => Ok(false),
        },
        Shape::Int => match value.cast_exact::<PyInt>() {
            Ok(number) => write_int(out, number),
            Err(_) => Ok(false),
        },
        Shape::Float => match value.cast_exact::<PyFloat>() {
            Ok(number) => write_float(out, number.value()),
            Err(_) => Ok(false),
        },
        Shape::Bool => Ok(value
            .cast_exact::<PyBool>()
            .is_ok_and(|truth| write_bool(out, truth.is_true()))),
        Shape::Time => write_time(out, value),
        Shape::List(inner) => match value.cast_exact::<PyList>() {
            Ok(list) => write_list(out, list, inner, depth),
            Err(_) => Ok(false),
        },
        Shape::Dict(inner) => match value.cast_exact::<PyDict>() {
            Ok(dict) => write_dict(out, dict, inner, depth),
            Err(_) => Ok(false),
        },
        Shape::Either(choices) => {
            let start = out.len();
            for choice in choices {
                if write(out, value, choice, depth)? {
                    return Ok(true);
                }
                out.truncate(start);
            }
            Ok(false)
        }
        Shape::Member(members) => {
            let found = members.iter().find(|(member, _)| value.is(member));
            Ok(found.is_some_and(|(_, text)| plain(out, text)))
        }
    }
}

fn write_any(out: &mut Vec<u8>, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<bool> {
    if let Ok(text) = value.cast_exact::<PyString>() {
        write_text(out, text)
    } else if value.is_none() {
        Ok(plain(out, b"null"))
    } else if let Ok(truth) = value.cast_exact::<PyBool>() {
        Ok(write_bool(out, truth.is_true()))
    } else if let Ok(number) = value.cast_exact::<PyInt>() {
        write_int(out, number)
    } else if let Ok(number) = value.cast_exact::<PyFloat>() {
        write_float(out, number.value())
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        write_list(out, list, &Shape::Any, depth)
    } else if let Ok(dict) = value.cast_exact::<PyDict>() {
        write_dict(out, dict, &Shape::Any, depth)
    } else {
        Ok(false)
    }
}

fn write_list(
    out: &mut Vec<u8>,
    list: &Bound<'_, PyList>,
    inner: &Shape,
    depth: usize,
) -> PyResult<bool> {
    if depth >= DEEPEST {
        return Ok(false);
    }
    out.push(b'[');
    for (index, item) in list.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if !write(out, &item, inner, depth + 1)? {
            return Ok(false);
        }
    }
    Ok(plain(out, b"]"))
}

fn write_dict(
    out: &mut Vec<u8>,
    dict: &Bound<'_, PyDict>,
    inner: &Shape,
    depth: usize,
) -> PyResult<bool> {
    if depth >= DEEPEST {
        return Ok(false);
    }
    out.push(b'{');
    for (index, (key, item)) in dict.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let Ok(key) = key.cast_exact::<PyString>() else {
            return Ok(false);
        };
        if !write_text(out, key)? {
            return Ok(false);
        }
        out.push(b':');
        if !write(out, &item, inner, depth + 1)? {
            return Ok(false);
        }
    }
    Ok(plain(out, b"}"))
}

fn write_text(out: &mut Vec<u8>, text: &Bound<'_, PyString>) -> PyResult<bool> {
    // Halves of characters have no UTF-8.
    match text.to_str() {
        Ok(text) => quote(out, text).map(|()| true),
        Err(_) => Ok(false),
    }
}

/// Numbers beyond 64 bits are left to others.
fn write_int(out: &mut Vec<u8>, number: &Bound<'_, PyInt>) -> PyResult<bool> {
    match number.extract::<i64>() {
        Ok(number) => json(out, &number).map(|()| true),
        Err(_) => Ok(false),
    }
}

/// `NaN` and infinities have no JSON.
fn write_float(out: &mut Vec<u8>, number: f64) -> PyResult<bool> {
    if !number.is_finite() {
        return Ok(false);
    }
    json(out, &number).map(|()| true)
}

fn write_bool(out: &mut Vec<u8>, truth: bool) -> bool {
    plain(out, if truth { b"true" } else { b"false" })
}

/// As pydantic does, where it is by UTC or without a time zone.
fn write_time(out: &mut Vec<u8>, time: &Bound<'_, PyAny>) -> PyResult<bool> {
    static CLASSES: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();
    let py = time.py();
    let (class, utc) = CLASSES.get_or_try_init(py, || {
        let module = py.import("datetime")?;
        let utc = module.getattr("timezone")?.getattr("utc")?;
        PyResult::Ok((module.getattr("datetime")?.unbind(), utc.unbind()))
    })?;
    if !time.get_type().is(class) {
        return Ok(false);
    }
    let zone = time.getattr(intern!(py, "tzinfo"))?;
    if !zone.is_none() && !zone.is(utc) {
        return Ok(false);
    }
    let text = time.call_method0(intern!(py, "isoformat"))?;
    let text: &str = text.extract()?;
    out.push(b'"');
    match text.strip_suffix("+00:00") {
        Some(text) => {
            out.extend_from_slice(text.as_bytes());
            out.push(b'Z');
        }
        None => out.extend_from_slice(text.as_bytes()),
    }
    Ok(plain(out, b"\""))
}

fn plain(out: &mut Vec<u8>, text: &[u8]) -> bool {
    out.extend_from_slice(text);
    true
}

fn quote(out: &mut Vec<u8>, text: &str) -> PyResult<()> {
    json(out, text)
}

fn json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> PyResult<()> {
    serde_json::to_writer(out, value).map_err(|error| PyValueError::new_err(error.to_string()))
}
