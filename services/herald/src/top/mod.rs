//! The overview of `herald top`: what is read, what is made of it, and how it is drawn.

mod names;
mod overview;
mod read;
mod samples;
mod screen;
mod window;

pub(crate) use overview::Overview;
pub(crate) use read::{Reader, Servers};
pub(crate) use screen::{Screen, draw};
