//! CrewAI's `to_serializable`: any object as what JSON can hold, new containers all the way down.
//!
//! The walk does what CrewAI's does, in the same order, wherever code of the objects themselves can
//! run (`__repr__`, `model_dump`, `items`, a lying `__class__`), so that it calls the same and fails
//! alike. Plain containers and scalars, nearly all of a run's data, take a short way.
//!
//! Nothing is kept between calls. A history is given anew at each turn, but callers change messages
//! in place, and handlers the events that they get, so every turn needs containers of its own and a
//! look at all that it holds. Strings and numbers, the bulk of a message, are passed on as they are, so
//! what is left to do is a look at each and a `dict.copy()` of each message. A cache would not spare it:
//! to prove that nothing has changed takes that look, and what comes out has to be copied.

use pyo3::exceptions::{PyException, PyRecursionError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PySet, PyString, PyTuple, PyType};
use pyo3::{PyTypeInfo, ffi, intern};

/// Levels of containers above which the walk gives up, within the stack of a thread that has 512 kB.
/// CrewAI's own walk, which answers then, gives up at some 480 under Python 3.11's default limit.
const DEEPEST: usize = 500;

/// Converts a Python object into a JSON-compatible representation, as CrewAI's function does.
#[pyfunction]
#[expect(clippy::used_underscore_binding)] // CrewAI's names
#[pyo3(
    signature = (obj, exclude=None, max_depth=Depth(5), _current_depth=Depth(0), _ancestors=None),
    text_signature = "(obj, exclude=None, max_depth=5, _current_depth=0, _ancestors=None)"
)]
pub(super) fn to_serializable<'py>(
    obj: &Bound<'py, PyAny>,
    exclude: Option<&Bound<'py, PyAny>>,
    max_depth: Depth,
    _current_depth: Depth,
    _ancestors: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = obj.py();
    let mut ancestors = Vec::new();
    if let Some(given) = _ancestors {
        for ancestor in given.try_iter()? {
            ancestors.push(ancestor?.extract::<usize>()?);
        }
    }
    let mut walk = Walk {
        py,
        classes: Classes::get(py)?,
        max_depth: max_depth.0,
        base: ancestors.len(),
        ancestors,
        interrupted: 0,
    };
    walk.value(obj, _current_depth.0, exclude)
}

/// A level. What lies beyond 64 bits is as good as the ends of their range.
pub(super) struct Depth(i64);

impl<'py> FromPyObject<'_, 'py> for Depth {
    type Error = PyErr;

    fn extract(number: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(number) = number.extract() {
            return Ok(Self(number));
        }
        let number: f64 = number.extract().map_err(|_| {
            PyTypeError::new_err(format!(
                "a depth is of type {}; it accepts int",
                number.get_type()
            ))
        })?;
        // The first level beyond 2.5 is 3.
        Ok(Self(number.ceil() as i64))
    }
}

/// The classes by which CrewAI sorts objects.
struct Classes {
    scalars: Py<PyTuple>,
    uuid: Py<PyAny>,
    date: Py<PyAny>,
    sequences: Py<PyTuple>,
    keys: Py<PyTuple>,
    model: Py<PyAny>,
    fields: Py<PyAny>,
}

impl Classes {
    fn get(py: Python<'_>) -> PyResult<&'static Self> {
        static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();
        CLASSES.get_or_try_init(py, || {
            let named = |module: &str, name: &str| -> PyResult<Py<PyAny>> {
                Ok(py.import(module)?.getattr(name)?.unbind())
            };
            let text = PyString::type_object(py).into_any();
            let int = PyInt::type_object(py).into_any();
            let scalars = [
                text.clone(),
                int.clone(),
                PyFloat::type_object(py).into_any(),
                PyBool::type_object(py).into_any(),
                py.None().bind(py).get_type().into_any(),
            ];
            let sequences = [
                PyList::type_object(py).into_any(),
                PyTuple::type_object(py).into_any(),
                PySet::type_object(py).into_any(),
            ];
            Ok(Self {
                scalars: PyTuple::new(py, scalars)?.unbind(),
                uuid: named("uuid", "UUID")?,
                // `datetime` derives from it.
                date: named("datetime", "date")?,
                sequences: PyTuple::new(py, sequences)?.unbind(),
                keys: PyTuple::new(py, [text, int])?.unbind(),
                model: named("pydantic", "BaseModel")?,
                fields: named("dataclasses", "fields")?,
            })
        })
    }
}

type Exclude<'a, 'py> = Option<&'a Bound<'py, PyAny>>;
type Convert<'py> = for<'a> fn(
    &mut Walk<'py>,
    &Bound<'py, PyAny>,
    i64,
    Exclude<'a, 'py>,
) -> PyResult<Bound<'py, PyAny>>;

struct Walk<'py> {
    py: Python<'py>,
    classes: &'static Classes,
    /// 0 or less: none.
    max_depth: i64,
    /// The identities of the containers that hold the object in hand.
    ancestors: Vec<usize>,
    /// How many of them the caller named.
    base: usize,
    /// How often code of the objects themselves may have run.
    interrupted: usize,
}

impl<'py> Walk<'py> {
    fn value(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if self.ends_at(depth) {
            self.interrupted += usize::from(!is_plain_scalar(obj));
            return Ok(obj.repr()?.into_any());
        }
        if is_plain_scalar(obj) {
            return Ok(obj.clone());
        }
        let convert = if obj.is_exact_instance_of::<PyDict>() {
            Self::dict
        } else if obj.is_exact_instance_of::<PyList>() {
            Self::list
        } else if obj.is_exact_instance_of::<PyTuple>() {
            Self::tuple
        } else {
            return self.unusual(obj, depth, exclude);
        };
        self.inside(obj, depth, exclude, convert)
    }

    /// Whether objects of this level are shown as `repr` shows them.
    fn ends_at(&self, depth: i64) -> bool {
        self.max_depth > 0 && depth >= self.max_depth
    }

    /// Converts an object that is none of the types that nearly all of a run's data has.
    #[inline(never)]
    fn unusual(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.interrupted += 1;
        if obj.is_instance(self.classes.scalars.bind(self.py))? {
            return Ok(obj.clone());
        }
        if obj.is_instance(self.classes.uuid.bind(self.py))? {
            return Ok(obj.str()?.into_any());
        }
        if obj.is_instance(self.classes.date.bind(self.py))? {
            return obj.call_method0(intern!(self.py, "isoformat"));
        }
        self.inside(obj, depth, exclude, Self::other)
    }

    /// Converts what may hold other objects, itself among them.
    fn inside(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
        convert: Convert<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let identity = obj.as_ptr() as usize;
        if self.ancestors.contains(&identity) {
            return circular(obj);
        }
        let level = self.ancestors.len();
        if level - self.base >= DEEPEST {
            return Err(too_deep());
        }
        // With a limit the stack cannot grow beyond it.
        let _guard = (self.max_depth <= 0)
            .then(|| Recursion::enter(self.py))
            .transpose()?;
        self.ancestors.push(identity);
        let converted = convert(self, obj, depth + 1, exclude);
        // An error may have left some of those below.
        self.ancestors.truncate(level);
        converted
    }

    // Each level of nesting is a level of the stack. What it needs there stays small as long as the
    // longer ways are no part of the same function.

    #[inline(never)]
    fn list(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let list = obj.cast_exact::<PyList>()?;
        let mut items = Vec::with_capacity(list.len());
        // Converting an item may run code that changes the list; Python's loop follows it, too.
        while items.len() < list.len() {
            let item = list.get_item(items.len())?;
            items.push(self.value(&item, depth, exclude)?);
        }
        Ok(PyList::new(self.py, items)?.into_any())
    }

    #[inline(never)]
    fn tuple(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let items: Vec<_> = obj
            .cast_exact::<PyTuple>()?
            .iter()
            .map(|item| self.value(&item, depth, exclude))
            .collect::<PyResult<_>>()?;
        Ok(PyList::new(self.py, items)?.into_any())
    }

    /// Converts what is neither a scalar nor one of Python's own containers.
    fn other(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        if !obj.is_instance_of::<PyType>()
            && !obj.is_instance(PyType::type_object(py).as_any())?
            && obj
                .get_type()
                .getattr_opt(intern!(py, "__dataclass_fields__"))?
                .is_some()
        {
            return self.dataclass(obj, depth, exclude);
        }
        if obj.is_instance(self.classes.sequences.bind(py))? {
            return self.sequence(obj, depth, exclude);
        }
        if obj.is_instance(PyDict::type_object(py).as_any())? {
            return self.mapping(obj, depth, exclude, exclude);
        }
        if obj.is_instance(self.classes.model.bind(py))? {
            return self.model(obj, depth, exclude);
        }
        Ok(obj.repr()?.into_any())
    }

    #[inline(never)]
    fn dict(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let dict = obj.cast_exact::<PyDict>()?;
        if exclude.is_none() && !self.ends_at(depth) {
            match Content::of(dict) {
                Content::Scalars => return Ok(dict.copy()?.into_any()),
                Content::Named => return self.named(dict, depth),
                Content::Any => {}
            }
        }
        let converted = PyDict::new(self.py);
        let mut entries = Entries::of(dict);
        while let Some((key, value)) = entries.next()? {
            if !excluded(exclude, &key)? {
                self.interrupted += usize::from(!key.is_exact_instance_of::<PyString>());
                let key = self.key(key)?;
                converted.set_item(key, self.value(&value, depth, exclude)?)?;
            }
        }
        Ok(converted.into_any())
    }

    /// Converts a dict whose keys are kept: copies it, and puts in what is to be converted.
    ///
    /// Copying a dict costs a fraction of filling one.
    #[inline(never)]
    fn named(&mut self, dict: &Bound<'py, PyDict>, depth: i64) -> PyResult<Bound<'py, PyAny>> {
        let mut converted = dict.copy()?;
        let before = self.interrupted;
        let mut afresh = false;
        let mut done = 0;
        let mut entries = Entries::of(dict);
        while let Some((key, value)) = entries.next()? {
            if self.interrupted != before && !afresh {
                // What comes next may have become another than was copied.
                converted = first(&converted, done)?;
                afresh = true;
            }
            if afresh || !is_plain_scalar(&value) {
                let key = self.key(key)?;
                converted.set_item(key, self.value(&value, depth, None)?)?;
            }
            done += 1;
        }
        if !afresh && done < converted.len() {
            converted = first(&converted, done)?;
        }
        Ok(converted.into_any())
    }

    fn sequence(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let converted = PyList::empty(self.py);
        for item in obj.try_iter()? {
            converted.append(self.value(&item?, depth, exclude)?)?;
        }
        Ok(converted.into_any())
    }

    /// Converts what has `items()`: entries whose key is not in `hidden`, and in them `exclude`.
    fn mapping(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        hidden: Exclude<'_, 'py>,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let converted = PyDict::new(self.py);
        for entry in obj.call_method0(intern!(self.py, "items"))?.try_iter()? {
            let (key, value) = pair(entry?)?;
            if !excluded(hidden, &key)? {
                let key = self.key(key)?;
                converted.set_item(key, self.value(&value, depth, exclude)?)?;
            }
        }
        Ok(converted.into_any())
    }

    fn dataclass(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let converted = PyDict::new(self.py);
        for field in self
            .classes
            .fields
            .bind(self.py)
            .call1((obj,))?
            .try_iter()?
        {
            let name = field?.getattr(intern!(self.py, "name"))?;
            if !excluded(exclude, &name)? {
                let value = obj.getattr(name.cast::<PyString>()?)?;
                converted.set_item(name, self.value(&value, depth, exclude)?)?;
            }
        }
        Ok(converted.into_any())
    }

    /// Converts what a Pydantic model says of itself; where that fails, what it holds.
    fn model(
        &mut self,
        obj: &Bound<'py, PyAny>,
        depth: i64,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let level = self.ancestors.len();
        // What is left out is what the model leaves out: CrewAI looks no further inside.
        let dumped = self
            .dump(obj, exclude)
            .and_then(|dumped| self.value(&dumped, depth, None))
            .or_else(|error| {
                self.only_exceptions(error)?;
                self.ancestors.truncate(level);
                let held = obj.getattr(intern!(self.py, "__dict__"))?;
                self.mapping(&held, depth, exclude, None)
            });
        dumped.or_else(|error| {
            self.only_exceptions(error)?;
            Ok(obj.repr()?.into_any())
        })
    }

    fn dump(
        &self,
        obj: &Bound<'py, PyAny>,
        exclude: Exclude<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let options = PyDict::new(self.py);
        options.set_item(intern!(self.py, "mode"), intern!(self.py, "json"))?;
        match exclude {
            Some(exclude) => options.set_item(intern!(self.py, "exclude"), exclude)?,
            None => options.set_item(intern!(self.py, "exclude"), PySet::empty(self.py)?)?,
        }
        options.set_item(intern!(self.py, "serialize_as_any"), true)?;
        obj.call_method(intern!(self.py, "model_dump"), (), Some(&options))
    }

    /// Lets pass what ends programs, Ctrl-C for one, as `except Exception` does.
    fn only_exceptions(&self, error: PyErr) -> PyResult<()> {
        if error.is_instance_of::<PyException>(self.py) {
            Ok(())
        } else {
            Err(error)
        }
    }

    fn key(&self, key: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if key.is_exact_instance_of::<PyString>() {
            return Ok(key);
        }
        if key.is_instance(self.classes.keys.bind(self.py))? {
            return Ok(key.str()?.into_any());
        }
        let identity = key.as_ptr() as usize;
        PyString::new(self.py, &format!("key_{identity}_")).add(formatted(key.repr()?.into_any())?)
    }
}

fn is_plain_scalar(obj: &Bound<'_, PyAny>) -> bool {
    obj.is_exact_instance_of::<PyString>()
        || obj.is_none()
        || obj.is_exact_instance_of::<PyInt>()
        || obj.is_exact_instance_of::<PyBool>()
        || obj.is_exact_instance_of::<PyFloat>()
}

/// Returns a dict of the first entries of one.
#[cold]
fn first<'py>(dict: &Bound<'py, PyDict>, count: usize) -> PyResult<Bound<'py, PyDict>> {
    let kept = PyDict::new(dict.py());
    for (key, value) in dict.iter().take(count) {
        kept.set_item(key, value)?;
    }
    Ok(kept)
}

#[cold]
fn circular<'py>(obj: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let name = obj.get_type().getattr(intern!(obj.py(), "__name__"))?;
    PyString::new(obj.py(), "<circular_ref:")
        .add(formatted(name)?)?
        .add(">")
}

#[cold]
fn too_deep() -> PyErr {
    PyRecursionError::new_err(format!("an object is nested deeper than {DEEPEST} levels"))
}

fn excluded(exclude: Exclude<'_, '_>, name: &Bound<'_, PyAny>) -> PyResult<bool> {
    exclude.map_or(Ok(false), |exclude| exclude.contains(name))
}

/// Returns what an f-string shows of an object.
fn formatted(obj: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    if obj.is_exact_instance_of::<PyString>() {
        return Ok(obj);
    }
    obj.call_method1(intern!(obj.py(), "__format__"), ("",))
}

/// Unpacks two values, as `for key, value in …` does.
fn pair(entry: Bound<'_, PyAny>) -> PyResult<(Bound<'_, PyAny>, Bound<'_, PyAny>)> {
    if let Ok(pair) = entry.extract() {
        return Ok(pair);
    }
    let parts: Vec<_> = entry.try_iter()?.collect::<PyResult<_>>()?;
    <[_; 2]>::try_from(parts)
        .map(|[key, value]| (key, value))
        .map_err(|parts| {
            PyValueError::new_err(if parts.len() > 2 {
                "too many values to unpack (expected 2)".to_owned()
            } else {
                format!(
                    "not enough values to unpack (expected 2, got {})",
                    parts.len()
                )
            })
        })
}

/// What a dict holds, as far as that decides how it is converted.
enum Content {
    /// Under each key, a `str` itself, a scalar that is kept.
    Scalars,
    /// Keys that are kept.
    Named,
    Any,
}

impl Content {
    fn of(dict: &Bound<'_, PyDict>) -> Self {
        let mut content = Self::Scalars;
        let (mut key, mut value, mut place) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: `dict` is a dict, which nothing changes meanwhile, for nothing here runs code of
        // Python's; so what it holds can be borrowed.
        while unsafe {
            ffi::PyDict_Next(dict.as_ptr(), &raw mut place, &raw mut key, &raw mut value) != 0
        } {
            // SAFETY: as above.
            let (key, value) = unsafe {
                (
                    Borrowed::from_ptr(dict.py(), key),
                    Borrowed::from_ptr(dict.py(), value),
                )
            };
            if !key.is_exact_instance_of::<PyString>() {
                return Self::Any;
            }
            if !is_plain_scalar(&value) {
                content = Self::Named;
            }
        }
        content
    }
}

/// Goes through a dict that code may change meanwhile.
///
/// As in Python's loop, a dict whose size has changed raises, one that gives more entries than it had,
/// too, and other changes show.
struct Entries<'a, 'py> {
    dict: &'a Bound<'py, PyDict>,
    size: usize,
    left: usize,
    place: ffi::Py_ssize_t,
}

impl<'a, 'py> Entries<'a, 'py> {
    fn of(dict: &'a Bound<'py, PyDict>) -> Self {
        Self {
            dict,
            size: dict.len(),
            left: dict.len(),
            place: 0,
        }
    }

    fn next(&mut self) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
        if self.dict.len() != self.size {
            return Err(PyRuntimeError::new_err(
                "dictionary changed size during iteration",
            ));
        }
        let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
        let (dict, py) = (self.dict.as_ptr(), self.dict.py());
        // SAFETY: `dict` is a dict, and `place` came from here before or is 0. Both references are
        // borrowed from it and made our own before anything can run that changes it.
        let entry = unsafe {
            if ffi::PyDict_Next(dict, &raw mut self.place, &raw mut key, &raw mut value) == 0 {
                return Ok(None);
            }
            (
                Bound::from_borrowed_ptr(py, key),
                Bound::from_borrowed_ptr(py, value),
            )
        };
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| PyRuntimeError::new_err("dictionary keys changed during iteration"))?;
        Ok(Some(entry))
    }
}

/// One level of Python's recursion, counted as one of its own.
struct Recursion<'py>(Python<'py>);

impl<'py> Recursion<'py> {
    fn enter(py: Python<'py>) -> PyResult<Self> {
        // SAFETY: the thread is attached, which `py` shows, and the text ends in NUL.
        if unsafe { ffi::Py_EnterRecursiveCall(c" while converting an object".as_ptr()) } == 0 {
            Ok(Self(py))
        } else {
            Err(PyErr::fetch(py))
        }
    }
}

impl Drop for Recursion<'_> {
    fn drop(&mut self) {
        // SAFETY: entered by `enter`, on this thread, which is attached still.
        unsafe { ffi::Py_LeaveRecursiveCall() }
    }
}
