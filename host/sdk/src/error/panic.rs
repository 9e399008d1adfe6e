//! Panics as ordinary errors.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::{env, mem, panic};

use super::{HasKind, Kind};

/// A panic that was caught: where it happened, where that is known, and what it said.
#[derive(Debug, Clone, thiserror::Error)]
#[error("panic{}: {message}", location.as_deref().map(|at| format!(" at {at}")).unwrap_or_default())]
pub struct Panic {
    location: Option<String>,
    message: String,
}

impl HasKind for Panic {
    fn kind(&self) -> Kind {
        Kind::Runtime
    }
}

thread_local! {
    /// How many [`catch_panic`] are on this thread's stack.
    static CATCHING: Cell<usize> = const { Cell::new(0) };
    /// Where this thread's last panic under [`catch_panic`] happened.
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `work` and returns a panic in it as an error, which Python sees as `RuntimeError`.
///
/// PyO3 raises a panic as `PanicException`, which derives from `BaseException`: it passes every
/// `except Exception` of a crew and ends the program, for a defect in one accelerator. Where work
/// is run by [`gil::detached`](crate::gil::detached), this is
/// already done.
///
/// A caught panic is not printed, unless `RUST_BACKTRACE` is set. What `work` was changing when it
/// panicked may be half changed: discard it, or hold it under a lock that is not used again.
///
/// ```
/// use crewai_native_sdk::error::catch_panic;
///
/// let items = [1, 2, 3];
/// let caught = catch_panic(|| items[items.len()]).unwrap_err();
/// assert!(caught.to_string().ends_with("index out of bounds: the len is 3 but the index is 3"));
/// ```
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    static HOOK: Once = Once::new();
    HOOK.call_once(install_hook);
    CATCHING.set(CATCHING.get() + 1);
    LOCATION.set(None);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    result.map_err(|payload| {
        let location = LOCATION.take();
        payload.downcast::<Panic>().map_or_else(
            |payload| Panic {
                location,
                message: message_of(payload),
            },
            // Another thread's panic, passed on.
            |panic| *panic,
        )
    })
}

impl Panic {
    /// Goes on with a panic that another thread had, as a panic of this thread.
    pub(crate) fn resume(self) -> ! {
        if CATCHING.get() > 0 {
            panic::resume_unwind(Box::new(self));
        }
        // Nobody here would print it otherwise.
        panic!("{self}")
    }
}

/// Makes the panic hook note where a panic happened that is going to be caught here.
fn install_hook() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // `try_with`: a thread may panic while its thread-locals are being destroyed.
        let caught = CATCHING.try_with(|depth| depth.get() > 0).unwrap_or(false);
        if caught {
            // A failure to note the place leaves a message without the place.
            _ = LOCATION.try_with(|at| at.replace(info.location().map(ToString::to_string)));
        }
        if !caught || env::var_os("RUST_BACKTRACE").is_some() {
            previous(info);
        }
    }));
}

fn message_of(payload: Box<dyn Any + Send>) -> String {
    let message = if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else {
        "a payload that is not text".to_owned()
    };
    // A payload may even panic while it is dropped.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(second);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_and_the_message_are_kept() {
        let line = line!() + 1;
        let caught = catch_panic(|| panic!("no {}", "luck")).unwrap_err();
        let file = file!();
        assert!(
            caught
                .to_string()
                .starts_with(&format!("panic at {file}:{line}:")),
            "{caught}"
        );
        assert!(caught.to_string().ends_with(": no luck"), "{caught}");
    }

    #[test]
    fn a_caught_panic_inside_another_does_not_lend_its_place() {
        let caught = catch_panic(|| {
            catch_panic(|| panic!("inner")).unwrap_err();
            // Like a panic of another thread, passed on: no hook runs.
            panic::resume_unwind(Box::new("outer"))
        });
        assert_eq!(caught.unwrap_err().to_string(), "panic: outer");
    }

    #[test]
    fn a_payload_that_panics_while_it_is_dropped_is_caught() {
        struct Hostile;
        impl Drop for Hostile {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        let caught = catch_panic(|| panic::panic_any(Hostile)).map(drop);
        assert!(caught.unwrap_err().to_string().ends_with("not text"));
    }

    #[test]
    fn without_a_panic_the_value_is_returned() {
        assert_eq!(catch_panic(|| 7).unwrap(), 7);
    }
}
