//! The store: a SQLite file that is the truth, and what a process keeps in memory to search it.
//!
//! Data flows one way. [`record`] and [`filter`] say what is stored and asked for; [`write`]
//! changes the file ([`schema`]) in [`transaction`]s, one writer at a time ([`queue`]), each of
//! which reaches SQLite's log in few pieces ([`log`]); [`read`] answers from tables; [`mirror`] follows
//! the file's changes and searches, beginning with a [`snapshot`] that [`seal`] made, and in
//! [`groups`] if it may be approximate, and knows `metadata` by hashes; [`engine`] puts them
//! together for one file, has the rest of large deletions [`sweep`]ed, and [`care`], [`text`] and
//! [`reembed`] give it what is not needed every day; [`process`] shares engines and takes them through a fork. Nothing here knows about Python.

mod alone;
mod aside;
pub mod care;
pub mod engine;
pub mod error;
pub mod filter;
pub mod groups;
mod json;
mod log;
mod metadata;
pub mod mirror;
pub mod process;
pub mod queue;
pub mod read;
pub mod record;
pub mod reembed;
pub mod schema;
pub mod scope;
pub mod seal;
pub mod snapshot;
mod sweep;
pub mod text;
pub mod transaction;
pub mod write;

pub use engine::{Engine, Holdings};
pub use error::{Result, StoreError};
pub use filter::{Filter, Visibility};
pub use mirror::Request;
pub use process::Process;
pub use read::ScopeInfo;
pub use record::{Embedding, Record};
