//! The push service against a real nats-server, the real store and a real receiver.

mod deliver;
mod harness;
mod refuse;
mod retry;
mod throughput;
