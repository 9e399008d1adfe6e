//! The build passport: what exactly was loaded into this Python process.
//!
//! A native wheel is a black box to whoever must explain a slow or a crashing program. So every
//! accelerator exports a dict `__build_info__`, which `crewai-native doctor` prints and checks:
//!
//! | key | value |
//! |---|---|
//! | `name`, `version` | the accelerator's crate |
//! | `profile` | `"release"`, or `"debug"` when debug assertions are compiled in |
//! | `git` | the commit, from the variable `CREWAI_NATIVE_GIT_COMMIT` at build time, or `"unknown"` |
//! | `target` | the target triple |
//! | `target_features` | list: CPU features that the compiler was allowed to assume |
//! | `cpu_features` | list: CPU features that kernels choose by, found on this machine |
//! | `contract` | major version of the host contract that the SDK was written for |
//! | `sdk` | version of this crate |
//!
//! [`passport!`](crate::passport!) adds it, with further entries where there is more to tell:
//!
//! ```
//! use pyo3::prelude::*;
//!
//! #[pymodule]
//! fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
//!     crewai_native_sdk::passport!(module, "sqlite" => "3.51.3", "vector_bytes" => 4)
//! }
//! ```

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::atexit;

/// Major version of the host contract that this SDK serves.
pub const CONTRACT: u32 = 1;

/// The facts that only the accelerator's own crate knows. Built by [`passport!`](crate::passport!).
#[derive(Debug, Clone, Copy)]
pub struct Passport {
    /// `CARGO_PKG_NAME` of the accelerator.
    pub name: &'static str,
    /// `CARGO_PKG_VERSION` of the accelerator.
    pub version: &'static str,
    /// Whether debug assertions are compiled in.
    pub debug: bool,
    /// The commit that was built, where the build was told.
    pub git: Option<&'static str>,
}

impl Passport {
    /// Adds `__build_info__` to `module` and returns the dict, for further entries.
    ///
    /// Also [installs](crate::atexit::install) the SDK's exit hook: it is registered when the
    /// module is imported, so that it runs after the exit handlers of the program.
    pub fn add_to<'py>(self, module: &Bound<'py, PyModule>) -> PyResult<Bound<'py, PyDict>> {
        let info = PyDict::new(module.py());
        info.set_item("name", self.name)?;
        info.set_item("version", self.version)?;
        info.set_item("profile", if self.debug { "debug" } else { "release" })?;
        info.set_item("git", self.git.unwrap_or("unknown"))?;
        info.set_item("target", env!("CREWAI_NATIVE_SDK_TARGET"))?;
        info.set_item("target_features", target_features())?;
        info.set_item("cpu_features", cpu_features())?;
        info.set_item("contract", CONTRACT)?;
        info.set_item("sdk", env!("CARGO_PKG_VERSION"))?;
        module.add("__build_info__", &info)?;
        atexit::install(module.py())?;
        Ok(info)
    }
}

/// Adds `__build_info__` to a module: `passport!(module)`, or with further entries
/// `passport!(module, "sqlite" => version)`.
///
/// `module` is a `&Bound<PyModule>`; the value is a `PyResult<()>`. Name, version and profile are
/// those of the crate in which the macro is written. Also registers the SDK's
/// [exit hook](crate::atexit).
#[macro_export]
macro_rules! passport {
    ($module:expr $(, $key:literal => $value:expr)* $(,)?) => {
        $crate::passport::Passport {
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            debug: cfg!(debug_assertions),
            git: option_env!("CREWAI_NATIVE_GIT_COMMIT"),
        }
        .add_to($module)
        .and_then(|info| {
            $($crate::passport::PyDictMethods::set_item(&info, $key, $value)?;)*
            let _ = info;
            Ok(())
        })
    };
}

#[doc(hidden)]
pub use pyo3::types::PyDictMethods;

/// CPU features that the compiler was allowed to assume, as rustc names them.
pub fn target_features() -> Vec<&'static str> {
    env!("CREWAI_NATIVE_SDK_TARGET_FEATURES")
        .split(',')
        .filter(|name| !name.is_empty())
        .collect()
}

/// CPU features found on this machine, out of those that numeric kernels choose by.
pub fn cpu_features() -> Vec<&'static str> {
    macro_rules! detected {
        ($detect:ident: $($name:tt),*) => {
            [$(($name, std::arch::$detect!($name))),*]
                .into_iter()
                .filter_map(|(name, found)| found.then_some(name))
                .collect()
        };
    }
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return detected!(is_x86_feature_detected:
        "sse4.2", "popcnt", "avx", "f16c", "fma", "avx2", "avxvnni",
        "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16", "avx512vpopcntdq");
    #[cfg(target_arch = "aarch64")]
    return detected!(is_aarch64_feature_detected:
        "neon", "fp16", "dotprod", "i8mm", "bf16", "sve");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_compiler_assumed_is_there() {
        // Otherwise this test could not run; it shows that both lists use the same names.
        let found = cpu_features();
        for name in target_features() {
            let kernels_choose_by_it = ["sse4.2", "avx2", "avx512f", "neon"].contains(&name);
            assert!(!kernels_choose_by_it || found.contains(&name), "{name}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_baseline_of_the_target_is_reported() {
        assert!(target_features().contains(&"sse2"));
    }
}
