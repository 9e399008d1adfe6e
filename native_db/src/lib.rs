//! What CrewAI keeps in SQLite files and guards with lock files, made durable, small and quick.
//!
//! [`engine`] runs one SQLite file for all threads of a process; [`flow`] keeps the states of
//! flows in one, packed by [`codec`]; [`replay`] the outputs of tasks in
//! another, [`checkpoint`] what checkpoints add to one another, [`outline`] what stands for them, [`database`] a program's own tables; [`lock`] takes the locks that CrewAI's processes take turns
//! by. [`process`] takes all of them through a fork. [`python`] is the thin layer that CrewAI sees, and the only
//! one that knows about Python.

pub mod checkpoint;
pub mod codec;
pub mod database;
pub mod engine;
pub mod flow;
pub mod lock;
pub mod outline;
pub mod process;
pub mod python;
pub mod replay;
