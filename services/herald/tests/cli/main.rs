//! The command line: what it makes of its arguments, what it prints, how it ends.

mod answers;
mod help;
mod import;
mod push_sink;
mod requests;
mod run;
mod server;
mod streams;
