//! Python objects as bytes.

use pyo3::exceptions::{PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple, PyType};

use super::layout;
use super::message::{AgentMessage, FIELDS};
use crate::build::{MAX_DEPTH, MAX_DIGITS};
use crate::output::{Output, Pen};
use crate::{json, msgpack};

/// Takes the pieces of a value in their order. It is given on from piece to piece, see [`Pen`].
pub(super) trait Sink: Sized {
    fn null(self) -> Self;
    fn truth(self, truth: bool) -> Self;
    fn int(self, number: i64) -> Self;
    fn big_int(self, digits: &str) -> Self;
    fn float(self, number: f64) -> Self;
    fn text(self, text: &str) -> Result<Self, TooLarge>;
    fn begin_list(self, length: usize) -> Result<Self, TooLarge>;
    fn begin_map(self, length: usize) -> Result<Self, TooLarge>;
    /// Comes before each value of a list.
    fn separate(self, first: bool) -> Self;
    /// The key of a map's entry.
    fn key(self, text: &str, first: bool) -> Result<Self, TooLarge>;
    /// The name of a message's field, before which there is another entry.
    fn field(self, field: &Field) -> Self;
    /// The same with the field's value.
    fn field_text(self, field: &Field, text: &str) -> Result<Self, TooLarge>;
    fn end_list(self) -> Self;
    fn end_map(self) -> Self;
    /// Makes room for further messages, after so many and before so many.
    fn expect(self, written: usize, left: usize) -> Self;
    /// Comes after everything.
    fn finish(self);
}

/// A field of messages, by its name.
pub(super) struct Field {
    name: &'static str,
    key: json::Name,
}

static NAMED: [Field; FIELDS.len()] = {
    let [a, b, c, d, e] = FIELDS;
    [named(a), named(b), named(c), named(d), named(e)]
};

const fn named(name: &'static str) -> Field {
    let key = json::Name::new(name);
    Field { name, key }
}

pub(super) struct Json<'o, O>(Pen<'o, O>);

impl<'o, O: Output> Json<'o, O> {
    pub(super) fn new(output: &'o mut O) -> Self {
        Self(Pen::new(output))
    }
}

impl<O: Output> Sink for Json<'_, O> {
    fn null(self) -> Self {
        Self(self.0.extend(b"null"))
    }
    fn truth(self, truth: bool) -> Self {
        Self(self.0.extend(if truth { b"true" } else { b"false" }))
    }
    #[inline]
    fn int(self, number: i64) -> Self {
        Self(json::write_int(self.0, number))
    }
    fn big_int(self, digits: &str) -> Self {
        Self(self.0.extend(digits.as_bytes()))
    }
    fn float(self, number: f64) -> Self {
        Self(json::write_float(self.0, number))
    }
    fn text(self, text: &str) -> Result<Self, TooLarge> {
        Ok(Self(json::write_text(self.0, text)))
    }
    fn begin_list(self, _: usize) -> Result<Self, TooLarge> {
        Ok(Self(self.0.push(b'[')))
    }
    fn begin_map(self, _: usize) -> Result<Self, TooLarge> {
        Ok(Self(self.0.push(b'{')))
    }
    fn separate(self, first: bool) -> Self {
        if first { self } else { Self(self.0.push(b',')) }
    }
    fn key(self, text: &str, first: bool) -> Result<Self, TooLarge> {
        Ok(Self(json::write_key(self.0, text, first)))
    }
    fn field(self, field: &Field) -> Self {
        Self(json::write_name(self.0, field.key))
    }
    fn field_text(self, field: &Field, text: &str) -> Result<Self, TooLarge> {
        Ok(Self(json::write_named_text(self.0, field.key, text)))
    }
    fn end_list(self) -> Self {
        Self(self.0.push(b']'))
    }
    fn end_map(self) -> Self {
        Self(self.0.push(b'}'))
    }
    fn expect(self, written: usize, left: usize) -> Self {
        let more = expected(self.0.written(), written, left);
        Self(self.0.foresee(more))
    }
    fn finish(self) {
        self.0.finish();
    }
}

pub(super) struct Pack<'o>(pub(super) &'o mut Vec<u8>);

impl Sink for Pack<'_> {
    fn null(self) -> Self {
        msgpack::write_null(self.0);
        self
    }
    fn truth(self, truth: bool) -> Self {
        msgpack::write_truth(self.0, truth);
        self
    }
    fn int(self, number: i64) -> Self {
        msgpack::write_int(self.0, number);
        self
    }
    fn big_int(self, digits: &str) -> Self {
        msgpack::write_big_int(self.0, digits);
        self
    }
    fn float(self, number: f64) -> Self {
        msgpack::write_float(self.0, number);
        self
    }
    fn text(self, text: &str) -> Result<Self, TooLarge> {
        if msgpack::write_text(self.0, text) {
            Ok(self)
        } else {
            Err(TooLarge("a string"))
        }
    }
    fn begin_list(self, length: usize) -> Result<Self, TooLarge> {
        let length = u32::try_from(length).map_err(|_| TooLarge("a list"))?;
        msgpack::write_list(self.0, length);
        Ok(self)
    }
    fn begin_map(self, length: usize) -> Result<Self, TooLarge> {
        let length = u32::try_from(length).map_err(|_| TooLarge("a dict"))?;
        msgpack::write_map(self.0, length);
        Ok(self)
    }
    fn separate(self, _: bool) -> Self {
        self
    }
    fn key(self, text: &str, _: bool) -> Result<Self, TooLarge> {
        self.text(text)
    }
    fn field(self, field: &Field) -> Self {
        // Shorter than 4 GiB.
        _ = msgpack::write_text(self.0, field.name);
        self
    }
    fn field_text(self, field: &Field, text: &str) -> Result<Self, TooLarge> {
        self.field(field).text(text)
    }
    fn end_list(self) -> Self {
        self
    }
    fn end_map(self) -> Self {
        self
    }
    fn expect(self, written: usize, left: usize) -> Self {
        _ = self.0.try_reserve(expected(self.0.len(), written, left));
        self
    }
    fn finish(self) {}
}

/// Returns what is left if it is like what was written, and a little more: growing on the way copies
/// each time what there is.
fn expected(bytes: usize, written: usize, left: usize) -> usize {
    const MOST: usize = 64 << 20;
    let each = bytes / written.max(1) + 1;
    (each.saturating_mul(left) / 8 * 9).min(MOST)
}

/// What has 4 GiB or more, which is beyond `MessagePack`.
pub(super) struct TooLarge(&'static str);

/// What mappings become before they are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mappings {
    /// They stay as they are.
    Dicts,
    /// Each an [`AgentMessage`].
    Messages,
}

impl Mappings {
    /// Whether this is written without asking Python for anything.
    fn ready(self, message: Object<'_, '_>) -> bool {
        // Whether something derives from a type takes a call to find out.
        message.is_exact_instance_of::<AgentMessage>()
            || self == Self::Dicts
                && (message.is_exact_instance_of::<PyDict>() || message.is_instance_of::<PyDict>())
    }

    fn made<'py>(self, message: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = message.py();
        if self.ready(message.as_borrowed()) {
            return Ok(message.clone());
        }
        match self {
            // Python says it where it is none.
            Self::Dicts => py.get_type::<PyDict>().call1((message,)),
            Self::Messages => {
                let fields = PyDict::new(py);
                fields.update(message.cast::<PyMapping>()?)?;
                py.get_type::<AgentMessage>().call((), Some(&fields))
            }
        }
    }

    /// Returns a list of what is ready.
    fn list<'py>(self, messages: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        if let Ok(list) = messages.cast_exact::<PyList>() {
            // SAFETY: nothing changes the list while types are looked at.
            let items = unsafe { Items::of(messages.as_borrowed()) };
            let ready = |place| items.get(place).is_ok_and(|message| self.ready(message));
            if (0..items.length()).all(ready) {
                return Ok(list.clone());
            }
        }
        let list = PyList::empty(messages.py());
        for (number, message) in messages.try_iter()?.enumerate() {
            let made = self.made(&message?);
            list.append(made.map_err(|error| noted(messages.py(), error, number))?)?;
        }
        Ok(list)
    }
}

fn noted(py: Python<'_>, error: PyErr, number: usize) -> PyErr {
    // A note that cannot be added does not hide what is wrong.
    _ = error.add_note(py, format!("in message {number} of the batch"));
    error
}

/// Writes a message: a mapping as it is or as an [`AgentMessage`], and that in its envelope.
pub(super) fn message<S: Sink>(
    sink: S,
    message: &Bound<'_, PyAny>,
    mappings: Mappings,
    schema: i64,
) -> PyResult<()> {
    let message = mappings.made(message)?;
    let quiet = NoCollection::begin(message.py());
    let written = one(sink, message.as_borrowed(), schema);
    drop(quiet);
    let sink = written.map_err(|failure| failure.into_py(message.py()))?;
    sink.finish();
    Ok(())
}

/// Writes messages as one list, and returns how many there are.
pub(super) fn messages<S: Sink>(
    sink: S,
    messages: &Bound<'_, PyAny>,
    mappings: Mappings,
    schema: i64,
) -> PyResult<usize> {
    let py = messages.py();
    let list = mappings.list(messages)?;
    let quiet = NoCollection::begin(py);
    let written = all(sink, &list, schema);
    drop(quiet);
    match written {
        Ok(sink) => {
            sink.finish();
            Ok(list.len())
        }
        Err((number, failure)) => Err(noted(py, failure.into_py(py), number)),
    }
}

/// Why a value cannot be written, and where it stands.
struct Failure(Box<(Reason, Steps)>);

/// What is wrong. It is put into words when nothing borrowed is in use any more.
enum Reason {
    /// An object of this type.
    Type(Py<PyType>),
    /// A key of this type.
    Key(Py<PyType>),
    Value(&'static str),
    TooLarge(&'static str),
    Raised(PyErr),
}

/// The way to a value, innermost first.
type Steps = Vec<String>;

type Written<S> = Result<S, Failure>;

impl Failure {
    fn under(mut self, step: impl FnOnce() -> String) -> Self {
        const SHOWN: usize = 16;
        if self.0.1.len() < SHOWN {
            self.0.1.push(step());
        }
        self
    }

    fn into_py(self, py: Python<'_>) -> PyErr {
        let (reason, steps) = *self.0;
        let place: String = steps.iter().rev().map(String::as_str).collect();
        let name = |class: &Py<PyType>| {
            class.bind(py).fully_qualified_name().map_or_else(
                |_| "a nameless type".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            )
        };
        match reason {
            Reason::Type(class) => PyTypeError::new_err(format!(
                "message{place}: {} is nothing that a message can hold, which is dict, list, \
                 tuple, str, int, float, bool and None",
                name(&class)
            )),
            Reason::Key(class) => PyTypeError::new_err(format!(
                "message{place}: a key is of type {}; the keys of a message are str",
                name(&class)
            )),
            Reason::Value(what) => PyValueError::new_err(format!("message{place}: {what}")),
            Reason::TooLarge(what) => PyValueError::new_err(format!(
                "message{place}: {what} of 4 GiB or more is beyond MessagePack"
            )),
            Reason::Raised(error) => error,
        }
    }
}

impl From<Reason> for Failure {
    #[cold]
    fn from(reason: Reason) -> Self {
        Self(Box::new((reason, Vec::new())))
    }
}

impl From<TooLarge> for Failure {
    fn from(TooLarge(what): TooLarge) -> Self {
        Reason::TooLarge(what).into()
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Reason::Raised(error).into()
    }
}

/// Keeps Python's garbage collector, and with it finalisers, from running until dropped.
struct NoCollection {
    was_enabled: bool,
}

impl NoCollection {
    fn begin(_: Python<'_>) -> Self {
        // SAFETY: this thread is attached; the call sets a flag.
        let was_enabled = unsafe { ffi::PyGC_Disable() } != 0;
        Self { was_enabled }
    }
}

impl Drop for NoCollection {
    fn drop(&mut self) {
        if self.was_enabled {
            // SAFETY: as above; the thread has stayed attached in between.
            unsafe { ffi::PyGC_Enable() };
        }
    }
}

// From here on no code of Python's runs, neither the objects' own nor finalisers, and the GIL is not
// released: what a container holds stays there while it is written. So references are borrowed, which
// saves two calls for each object.

type Object<'a, 'py> = Borrowed<'a, 'py, PyAny>;

fn all<S: Sink>(sink: S, list: &Bound<'_, PyList>, schema: i64) -> Result<S, (usize, Failure)> {
    /// After so many messages it is guessed how long all will be.
    const SAMPLE: usize = 32;
    // SAFETY: nothing changes the list, and what it holds.
    let items = unsafe { Items::of(list.as_any().as_borrowed()) };
    let length = items.length();
    let mut sink = sink.begin_list(length).map_err(|error| (0, error.into()))?;
    for number in 0..length {
        if number == SAMPLE {
            sink = sink.expect(number, length - number);
        }
        ahead(&items, number);
        let message = items.get(number).map_err(|error| (number, error.into()))?;
        let written = one(sink.separate(number == 0), message, schema);
        sink = written.map_err(|failure| (number, failure))?;
    }
    Ok(sink.end_list())
}

/// What a `list` holds.
#[derive(Clone, Copy)]
struct Items<'a, 'py> {
    list: Object<'a, 'py>,
    read: Option<&'a [*mut ffi::PyObject]>,
}

impl<'a, 'py> Items<'a, 'py> {
    /// # Safety
    ///
    /// The object must be a `list` that nothing changes.
    unsafe fn of(list: Object<'a, 'py>) -> Self {
        // SAFETY: the caller's promise.
        let read = unsafe { layout::items(list.as_ptr()) };
        Self { list, read }
    }

    #[inline]
    fn length(&self) -> usize {
        match self.read {
            Some(items) => items.len(),
            // SAFETY: it is a `list`.
            None => unsafe { ffi::PyList_Size(self.list.as_ptr()).cast_unsigned() },
        }
    }

    #[inline]
    fn get(&self, place: usize) -> PyResult<Object<'a, 'py>> {
        let item = match self.read {
            Some(items) => items[place],
            // SAFETY: it is a `list`.
            None => unsafe { ffi::PyList_GetItem(self.list.as_ptr(), place.cast_signed()) },
        };
        // SAFETY: items live as long as nothing changes the list.
        unsafe { Borrowed::from_ptr_or_err(self.list.py(), item) }
    }
}

/// Has the processor load what the next messages consist of: many small objects all over the memory,
/// and waiting for one after the other is most of what writing them takes.
#[inline]
fn ahead(items: &Items<'_, '_>, number: usize) {
    const MESSAGE: usize = 6;
    const FIELDS: usize = 3;
    if number + MESSAGE < items.length()
        && let Ok(message) = items.get(number + MESSAGE)
    {
        load(message.as_ptr(), 2);
        if let Ok(message) = items.get(number + FIELDS)
            && let Some(message) = as_message(message)
        {
            for field in message.get().objects() {
                load(field, 2);
            }
        }
    }
}

/// Has the processor load so many cache lines of an object, or what is there in its place.
#[cfg(target_arch = "x86_64")]
fn load(object: *mut ffi::PyObject, lines: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    for line in 0..lines {
        let address = object.cast::<i8>().wrapping_add(64 * line);
        // SAFETY: it is a hint, which no address makes fail.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn load(_: *mut ffi::PyObject, _: usize) {}

fn one<S: Sink>(sink: S, message: Object<'_, '_>, schema: i64) -> Written<S> {
    match as_message(message) {
        Some(message) => envelope(sink, &message, schema),
        None => dict(sink, message, 0),
    }
}

/// Unlike a cast, it makes no error of what is none.
#[inline]
fn as_message<'a, 'py>(object: Object<'a, 'py>) -> Option<Borrowed<'a, 'py, AgentMessage>> {
    let exact = object.is_exact_instance_of::<AgentMessage>();
    // SAFETY: it is of that type.
    exact.then(|| unsafe { object.cast_unchecked() })
}

fn envelope<S: Sink>(sink: S, message: &Bound<'_, AgentMessage>, schema: i64) -> Written<S> {
    let py = message.py();
    let message = message.get();
    let extra = message.extra.as_ref().map(|extra| extra.bind(py));
    let fields = message.values(py);
    let mut sink = sink
        .begin_map(1 + fields.len() + extra.map_or(0, PyDictMethods::len))?
        .key("schema", true)?
        .int(schema);
    for (named, field) in NAMED.iter().zip(fields) {
        let field = field.as_borrowed();
        let written = if field.is_exact_instance_of::<PyString>() {
            text_of(field).and_then(|text| Ok(sink.field_text(named, text)?))
        } else {
            content(sink.field(named), field)
        };
        sink = written.map_err(|failure| failure.under(|| format!(".{}", named.name)))?;
    }
    if let Some(extra) = extra {
        sink = entries(sink, extra.as_any().as_borrowed(), 1, false)?;
    }
    Ok(sink.end_map())
}

/// Writes what is no text. Apart, because most messages hold nothing else than text.
#[inline(never)]
fn content<S: Sink>(sink: S, obj: Object<'_, '_>) -> Written<S> {
    value(sink, obj, 1)
}

/// Most values are scalars, and those are written where this stands.
#[allow(
    clippy::inline_always,
    reason = "the pen stays in its register, which was measured to be worth it"
)]
#[inline(always)]
fn value<S: Sink>(sink: S, obj: Object<'_, '_>, depth: usize) -> Written<S> {
    // The types themselves first: whether something derives from them takes a call to find out.
    if obj.is_exact_instance_of::<PyString>() {
        text(sink, obj)
    } else if obj.is_none() {
        Ok(sink.null())
    } else if obj.is_exact_instance_of::<PyBool>() {
        let truth = std::ptr::eq(obj.as_ptr(), PyBool::new(obj.py(), true).as_ptr());
        Ok(sink.truth(truth))
    } else if obj.is_exact_instance_of::<PyInt>() {
        int(sink, obj)
    } else if obj.is_exact_instance_of::<PyFloat>() {
        float(sink, obj)
    } else if obj.is_exact_instance_of::<PyDict>() {
        dict(sink, obj, depth)
    } else if obj.is_exact_instance_of::<PyList>() {
        list(sink, obj, depth)
    } else {
        derived(sink, obj, depth)
    }
}

#[inline(never)]
fn derived<S: Sink>(sink: S, obj: Object<'_, '_>, depth: usize) -> Written<S> {
    if obj.is_instance_of::<PyString>() {
        text(sink, obj)
    } else if obj.is_instance_of::<PyInt>() {
        int(sink, obj)
    } else if obj.is_instance_of::<PyFloat>() {
        float(sink, obj)
    } else if obj.is_instance_of::<PyDict>() {
        dict(sink, obj, depth)
    } else if obj.is_instance_of::<PyList>() {
        list(sink, obj, depth)
    } else if obj.is_instance_of::<PyTuple>() {
        tuple(sink, obj, depth)
    } else {
        Err(Reason::Type(obj.get_type().unbind()).into())
    }
}

/// Writes a `str`, of which the caller made sure; so do those of the functions below.
#[inline]
fn text<S: Sink>(sink: S, obj: Object<'_, '_>) -> Written<S> {
    Ok(sink.text(text_of(obj)?)?)
}

#[inline]
fn text_of<'a>(obj: Object<'a, '_>) -> Result<&'a str, Failure> {
    // SAFETY: `obj` is a `str`.
    if let Some(text) = unsafe { layout::ascii(obj.as_ptr()) } {
        return Ok(text);
    }
    let mut length = 0;
    // SAFETY: `obj` is an object. The text, which Python has checked, lives as long as that.
    unsafe {
        let bytes = ffi::PyUnicode_AsUTF8AndSize(obj.as_ptr(), &raw mut length);
        if bytes.is_null() {
            return Err(no_text(obj));
        }
        let bytes = std::slice::from_raw_parts(bytes.cast::<u8>(), length.cast_unsigned());
        Ok(std::str::from_utf8_unchecked(bytes))
    }
}

#[cold]
fn no_text(obj: Object<'_, '_>) -> Failure {
    // Takes the error away.
    let raised = PyErr::fetch(obj.py());
    if raised.is_instance_of::<PyUnicodeEncodeError>(obj.py()) {
        Reason::Value("a str with half of a surrogate pair cannot be written as UTF-8").into()
    } else {
        raised.into()
    }
}

#[inline]
fn int<S: Sink>(sink: S, obj: Object<'_, '_>) -> Written<S> {
    // SAFETY: `obj` is an `int`.
    if let Some(number) = unsafe { layout::small_int(obj.as_ptr()) } {
        return Ok(sink.int(number));
    }
    long_int(sink, obj)
}

#[inline(never)]
fn long_int<S: Sink>(sink: S, obj: Object<'_, '_>) -> Written<S> {
    let mut overflow = 0;
    // SAFETY: `obj` is an `int`, for which the call does no more than read it.
    let number = unsafe { ffi::PyLong_AsLongLongAndOverflow(obj.as_ptr(), &raw mut overflow) };
    if overflow == 0 {
        return Ok(sink.int(number));
    }
    big_int(sink, obj)
}

#[cold]
fn big_int<S: Sink>(sink: S, obj: Object<'_, '_>) -> Written<S> {
    // SAFETY: `obj` is an `int`, so this returns a new `str` or fails. It asks no subclass.
    let digits =
        unsafe { Bound::from_owned_ptr_or_err(obj.py(), ffi::PyNumber_ToBase(obj.as_ptr(), 10)) };
    let digits = digits.map_err(|error| {
        if error.is_instance_of::<PyValueError>(obj.py()) {
            Reason::Value("a whole number of more digits than Python converts")
        } else {
            Reason::Raised(error)
        }
    })?;
    let digits = digits.cast::<PyString>().map_err(PyErr::from)?.to_str()?;
    if digits.trim_start_matches('-').len() > MAX_DIGITS {
        return Err(Reason::Value("a whole number of more than 4300 digits").into());
    }
    Ok(sink.big_int(digits))
}

#[inline]
fn float<S: Sink>(sink: S, obj: Object<'_, '_>) -> Written<S> {
    // SAFETY: `obj` is a `float`.
    let number = unsafe {
        layout::float(obj.as_ptr()).unwrap_or_else(|| ffi::PyFloat_AsDouble(obj.as_ptr()))
    };
    if !number.is_finite() {
        return Err(Reason::Value("a number that is not finite is not JSON").into());
    }
    Ok(sink.float(number))
}

fn deeper(depth: usize) -> Result<usize, Failure> {
    if depth == MAX_DEPTH {
        return Err(Reason::Value("nested deeper than 256 levels, or containing itself").into());
    }
    Ok(depth + 1)
}

#[inline(never)]
fn list<S: Sink>(sink: S, list: Object<'_, '_>, depth: usize) -> Written<S> {
    // SAFETY: `list` is a `list` that nothing changes.
    let found = unsafe { Items::of(list) };
    items(sink, found.length(), depth, |place| found.get(place))
}

#[inline(never)]
fn tuple<S: Sink>(sink: S, tuple: Object<'_, '_>, depth: usize) -> Written<S> {
    // SAFETY: `tuple` is a `tuple`.
    let length = unsafe { ffi::PyTuple_Size(tuple.as_ptr()).cast_unsigned() };
    items(sink, length, depth, |place| {
        // SAFETY: its items live as long as it does.
        unsafe {
            let item = ffi::PyTuple_GetItem(tuple.as_ptr(), place.cast_signed());
            Borrowed::from_ptr_or_err(tuple.py(), item)
        }
    })
}

/// Writes the items of a sequence.
fn items<'a, 'py: 'a, S: Sink>(
    sink: S,
    length: usize,
    depth: usize,
    item: impl Fn(usize) -> PyResult<Object<'a, 'py>>,
) -> Written<S> {
    let depth = deeper(depth)?;
    let mut sink = sink.begin_list(length)?;
    for place in 0..length {
        let written = value(sink.separate(place == 0), item(place)?, depth);
        sink = written.map_err(|failure| failure.under(|| format!("[{place}]")))?;
    }
    Ok(sink.end_list())
}

#[inline(never)]
fn dict<S: Sink>(sink: S, dict: Object<'_, '_>, depth: usize) -> Written<S> {
    let depth = deeper(depth)?;
    // SAFETY: `dict` is a `dict`.
    let length = unsafe { ffi::PyDict_Size(dict.as_ptr()) };
    let sink = sink.begin_map(length.cast_unsigned())?;
    Ok(entries(sink, dict, depth, true)?.end_map())
}

fn entries<S: Sink>(
    mut sink: S,
    dict: Object<'_, '_>,
    depth: usize,
    mut first: bool,
) -> Written<S> {
    let (mut key, mut item, mut place) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: `dict` is a `dict` that nothing changes meanwhile.
    while unsafe {
        ffi::PyDict_Next(dict.as_ptr(), &raw mut place, &raw mut key, &raw mut item) != 0
    } {
        // SAFETY: keys and values live as long as nothing changes the dict.
        let (key, item) = unsafe {
            (
                Borrowed::from_ptr(dict.py(), key),
                Borrowed::from_ptr(dict.py(), item),
            )
        };
        if !key.is_exact_instance_of::<PyString>() && !key.is_instance_of::<PyString>() {
            return Err(Reason::Key(key.get_type().unbind()).into());
        }
        sink = sink.key(text_of(key)?, first)?;
        first = false;
        sink = value(sink, item, depth).map_err(|failure| failure.under(|| step(key)))?;
    }
    Ok(sink)
}

#[cold]
fn step(key: Object<'_, '_>) -> String {
    key.cast::<PyString>().map_or_else(
        |_| String::new(),
        |key| format!("[{:?}]", key.to_string_lossy()),
    )
}
