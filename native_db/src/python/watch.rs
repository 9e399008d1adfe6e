//! Whether Python objects are as they were when they were last dumped.
//!
//! To compare takes a small part of the time of dumping, and no Python code runs meanwhile: a run
//! with hundreds of objects is gone through in less than it takes to dump one of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple, PyType,
};

/// Values lie in one another so deep at most. What lies deeper, or in itself, is in doubt.
pub(super) const DEEPEST: usize = 64;

/// Values that one look sees at most. An object with more behind it is in doubt.
const MOST: usize = 50_000;

/// What the objects of a class are made of.
enum Kind {
    /// It cannot be told.
    Unknown,
    /// They never change.
    Constant,
    /// Some fields, and whether there are more in `__pydantic_extra__`.
    Fields(Vec<Py<PyString>>, bool),
}

/// What a value was like.
enum Seen {
    Constant(Py<PyAny>),
    /// That one, and no matter what it is like.
    Object(Py<PyAny>),
    Sequence(Vec<Self>),
    Mapping(Vec<(Py<PyAny>, Self)>),
    /// Of texts.
    Set(Py<PyFrozenSet>),
    Fields {
        class: Py<PyType>,
        fields: Fields,
        more: Option<Box<Self>>,
    },
}

/// The values in a dict by their keys, which it need not have.
type Fields = Vec<(Py<PyAny>, Option<Seen>)>;

/// (object, attribute with a dict, keys, whether the values' insides matter)
type Part<'py> = (
    Bound<'py, PyAny>,
    Bound<'py, PyString>,
    Bound<'py, PyTuple>,
    bool,
);

/// (object, attribute with a dict, what was in it)
type Glance = (Py<PyAny>, Py<PyString>, Fields);

/// What some of an object's values were like; nothing where it cannot be told.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct Look {
    parts: Option<Vec<Glance>>,
}

/// A class, and what its objects are made of.
type Known = (Py<PyType>, Arc<Kind>);

/// Objects by number, and what they were like.
#[pyclass(frozen, module = "crewai_native_db._native")]
pub(super) struct Watch {
    /// Says of a class what its objects are made of: see [`Watch::kind`].
    classify: Py<PyAny>,
    /// By the address of the class, which is kept.
    kinds: Mutex<HashMap<usize, Known>>,
    looks: Mutex<BTreeMap<i64, Vec<Py<Look>>>>,
}

#[pymethods]
impl Watch {
    #[new]
    fn new(classify: Py<PyAny>) -> Self {
        Self {
            classify,
            kinds: Mutex::default(),
            looks: Mutex::default(),
        }
    }

    /// Looks at an object's values, each part of them (object, attribute that holds a dict, keys
    /// in it, whether it matters what is inside the values). To be taken before they are dumped.
    fn look(&self, parts: Vec<Part<'_>>) -> PyResult<Look> {
        let mut left = MOST;
        let mut seen = Vec::with_capacity(parts.len());
        for (object, attribute, keys, inside) in parts {
            let fields = object.getattr(&attribute)?;
            let Some(fields) =
                self.see_fields(&fields, keys.iter(), inside.then_some(0), &mut left)?
            else {
                return Ok(Look { parts: None });
            };
            seen.push((object.unbind(), attribute.unbind(), fields));
        }
        Ok(Look { parts: Some(seen) })
    }

    /// Keeps what was seen, under a number.
    fn keep(&self, number: i64, looks: Vec<Py<Look>>) {
        let before = self
            .looks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, looks);
        // What is let go of may run Python code, and that must not wait for the lock.
        drop(before);
    }

    /// The numbers under which something is not as it was, or may not be.
    fn changed(&self, py: Python<'_>) -> PyResult<Vec<i64>> {
        let looks: Vec<_> = self
            .looks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .flat_map(|(number, looks)| looks.iter().map(|look| (*number, look.clone_ref(py))))
            .collect();
        let mut changed = Vec::new();
        for (number, look) in looks {
            if !look.get().holds(py)? {
                changed.push(number);
            }
        }
        changed.dedup();
        Ok(changed)
    }

    /// Whether something under one of the numbers is not as it was; what cannot be told does not
    /// count.
    fn moved(&self, py: Python<'_>, numbers: HashSet<i64>) -> PyResult<bool> {
        let looks: Vec<_> = {
            let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
            let found = numbers.iter().filter_map(|number| looks.get(number));
            found.flatten().map(|look| look.clone_ref(py)).collect()
        };
        for look in looks {
            let look = look.get();
            if look.parts.is_some() && !look.holds(py)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Watch {
    fn kind(&self, class: &Bound<'_, PyType>) -> PyResult<Arc<Kind>> {
        let key = class.as_ptr() as usize;
        let known = self
            .kinds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .map(|(_, kind)| Arc::clone(kind));
        if let Some(kind) = known {
            return Ok(kind);
        }
        // None, True, or (names of fields, whether there are more).
        let said = self.classify.bind(class.py()).call1((class,))?;
        let kind = Arc::new(if said.is_none() {
            Kind::Unknown
        } else if said.is_instance_of::<PyBool>() {
            Kind::Constant
        } else {
            let (names, more) = said.extract()?;
            Kind::Fields(names, more)
        });
        self.kinds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, (class.clone().unbind(), Arc::clone(&kind)));
        Ok(kind)
    }

    /// What a value is like; nothing where it cannot be told. `left` is how many more may be seen.
    fn see(
        &self,
        value: &Bound<'_, PyAny>,
        depth: usize,
        left: &mut usize,
    ) -> PyResult<Option<Seen>> {
        if value.is_none() || is_scalar(value) {
            return Ok(Some(Seen::Constant(value.clone().unbind())));
        }
        if depth > DEEPEST || *left == 0 {
            return Ok(None);
        }
        *left -= 1;
        if let Ok(list) = value.cast_exact::<PyList>() {
            return self.see_all(list.iter(), depth, left);
        }
        if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            return self.see_all(tuple.iter(), depth, left);
        }
        if let Ok(dict) = value.cast_exact::<PyDict>() {
            let mut items = Vec::with_capacity(dict.len());
            // A copy: to classify a class runs Python code, and with it other threads.
            for (key, value) in dict.copy()? {
                let (true, Some(seen)) = (is_scalar(&key), self.see(&value, depth + 1, left)?)
                else {
                    return Ok(None);
                };
                items.push((key.unbind(), seen));
            }
            return Ok(Some(Seen::Mapping(items)));
        }
        if let Ok(set) = value.cast_exact::<PySet>() {
            let texts = set
                .iter()
                .all(|item| item.is_exact_instance_of::<PyString>());
            let frozen = texts.then(|| PyFrozenSet::new(value.py(), set));
            return Ok(frozen.transpose()?.map(|set| Seen::Set(set.unbind())));
        }
        let class = value.get_type();
        match &*self.kind(&class)? {
            Kind::Unknown => Ok(None),
            Kind::Constant => Ok(Some(Seen::Constant(value.clone().unbind()))),
            Kind::Fields(names, more) => {
                let py = value.py();
                let names = names.iter().map(|name| name.bind(py).clone().into_any());
                let fields = value.getattr(intern!(py, "__dict__"))?;
                let Some(fields) = self.see_fields(&fields, names, Some(depth), left)? else {
                    return Ok(None);
                };
                let mut extra = None;
                if *more {
                    let more = value.getattr(intern!(py, "__pydantic_extra__"))?;
                    let Some(seen) = self.see(&more, depth + 1, left)? else {
                        return Ok(None);
                    };
                    extra = Some(Box::new(seen));
                }
                Ok(Some(Seen::Fields {
                    class: class.unbind(),
                    fields,
                    more: extra,
                }))
            }
        }
    }

    /// What the values in a dict are like: inside, at a depth, or else only which they are.
    fn see_fields<'py>(
        &self,
        fields: &Bound<'py, PyAny>,
        names: impl Iterator<Item = Bound<'py, PyAny>>,
        inside: Option<usize>,
        left: &mut usize,
    ) -> PyResult<Option<Fields>> {
        let fields = fields.cast::<PyDict>()?;
        let mut found = Vec::new();
        for name in names {
            let seen = match (fields.get_item(&name)?, inside) {
                (None, _) => None,
                (Some(value), None) => Some(see_objects(&value)),
                (Some(value), Some(depth)) => match self.see(&value, depth + 1, left)? {
                    None => return Ok(None),
                    seen => seen,
                },
            };
            found.push((name.unbind(), seen));
        }
        Ok(Some(found))
    }

    fn see_all<'py>(
        &self,
        values: impl ExactSizeIterator<Item = Bound<'py, PyAny>>,
        depth: usize,
        left: &mut usize,
    ) -> PyResult<Option<Seen>> {
        let mut items = Vec::with_capacity(values.len());
        for value in values {
            let Some(seen) = self.see(&value, depth + 1, left)? else {
                return Ok(None);
            };
            items.push(seen);
        }
        Ok(Some(Seen::Sequence(items)))
    }
}

impl Look {
    fn holds(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(parts) = &self.parts else {
            return Ok(false);
        };
        for (object, attribute, then) in parts {
            if !hold(then, &object.bind(py).getattr(attribute)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether the values in a dict are what was seen.
fn hold(then: &Fields, fields: &Bound<'_, PyAny>) -> PyResult<bool> {
    let fields = fields.cast::<PyDict>()?;
    for (name, seen) in then {
        let same = match (fields.get_item(name)?, seen) {
            (None, None) => true,
            (Some(value), Some(seen)) => seen.is(&value)?,
            _ => false,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Seen {
    /// Whether a value is what was seen.
    fn is(&self, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = value.py();
        match self {
            Self::Constant(then) => Ok(then.is(value) || equal(then.bind(py), value)?),
            Self::Object(then) => Ok(then.is(value)),
            Self::Sequence(then) => {
                if let Ok(list) = value.cast_exact::<PyList>() {
                    all_are(then, list.len(), list.iter())
                } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
                    all_are(then, tuple.len(), tuple.iter())
                } else {
                    Ok(false)
                }
            }
            Self::Mapping(then) => {
                let Ok(dict) = value.cast_exact::<PyDict>() else {
                    return Ok(false);
                };
                if dict.len() != then.len() {
                    return Ok(false);
                }
                for ((key, value), (name, seen)) in dict.iter().zip(then) {
                    let named = key.is(name) || equal(name.bind(py), &key)?;
                    if !named || !seen.is(&value)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Set(then) => Ok(value.is_exact_instance_of::<PySet>() && value.eq(then)?),
            Self::Fields {
                class,
                fields,
                more,
            } => Ok(value.get_type().is(class)
                && hold(fields, &value.getattr(intern!(py, "__dict__"))?)?
                && match more {
                    Some(more) => more.is(&value.getattr(intern!(py, "__pydantic_extra__"))?)?,
                    None => true,
                }),
        }
    }
}

fn all_are<'py>(
    then: &[Seen],
    length: usize,
    values: impl Iterator<Item = Bound<'py, PyAny>>,
) -> PyResult<bool> {
    if then.len() != length {
        return Ok(false);
    }
    for (seen, value) in then.iter().zip(values) {
        if !seen.is(&value)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn see_objects(value: &Bound<'_, PyAny>) -> Seen {
    let object = |item: Bound<'_, PyAny>| Seen::Object(item.unbind());
    if let Ok(list) = value.cast_exact::<PyList>() {
        Seen::Sequence(list.iter().map(object).collect())
    } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        Seen::Sequence(tuple.iter().map(object).collect())
    } else {
        object(value.clone())
    }
}

fn is_scalar(value: &Bound<'_, PyAny>) -> bool {
    value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyBool>()
        || value.is_exact_instance_of::<PyBytes>()
}

/// Whether two values, which are not one object, are dumped as the same.
fn equal(then: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let (Ok(then), Ok(value)) = (then.cast_exact::<PyFloat>(), value.cast_exact::<PyFloat>()) {
        // Not those of another sign.
        return Ok(then.value().to_bits() == value.value().to_bits());
    }
    Ok(then.get_type().is(value.get_type()) && is_scalar(value) && then.eq(value)?)
}

/// The fields in which there are objects that are known elsewhere and change there, and whether
/// everything else has one form in JSON, whoever writes it. `plain` are the classes of objects that
/// never change, besides those of JSON.
#[pyfunction]
pub(super) fn live_fields<'py>(
    fields: &Bound<'py, PyDict>,
    plain: &Bound<'py, PyTuple>,
) -> PyResult<(Vec<Bound<'py, PyAny>>, bool)> {
    let mut live = Vec::new();
    let mut exact = true;
    for (name, value) in fields.copy()? {
        if !is_plain(&value, plain, &mut exact, 0)? {
            live.push(name);
        }
    }
    Ok((live, exact))
}

fn is_plain(
    value: &Bound<'_, PyAny>,
    plain: &Bound<'_, PyTuple>,
    exact: &mut bool,
    depth: usize,
) -> PyResult<bool> {
    if let Ok(number) = value.cast_exact::<PyFloat>() {
        *exact &= number.value().is_finite();
        return Ok(true);
    }
    if value.is_none() || is_scalar(value) {
        return Ok(true);
    }
    if depth > DEEPEST {
        return Ok(false);
    }
    if let Ok(list) = value.cast_exact::<PyList>() {
        for item in list.iter() {
            if !is_plain(&item, plain, exact, depth + 1)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        // A copy: the check of a class may run Python code, and with it other threads.
        for (key, item) in dict.copy()? {
            *exact &= key.is_exact_instance_of::<PyString>();
            if !is_plain(&item, plain, exact, depth + 1)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    if value.is_instance(plain)? {
        return Ok(true);
    }
    if value.is_instance_of::<PyDict>() {
        *exact = false;
        let values = value.call_method0("values")?;
        for item in values.try_iter()? {
            if !is_plain(&item?, plain, exact, depth + 1)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    if value.is_instance_of::<PyList>()
        || value.is_instance_of::<PyTuple>()
        || value.is_instance_of::<PySet>()
        || value.is_instance_of::<PyFrozenSet>()
    {
        for item in value.try_iter()? {
            if !is_plain(&item?, plain, exact, depth + 1)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    Ok(false)
}
