//! Development only: what every test of the house builds its world from.
//!
//! Real servers run as child processes ([`postgres`], [`nats`], [`process`]), downstream applications are
//! scriptable ([`downstream`]), time and chance are moved by hand or drawn from a seed ([`clock`]), and
//! [`scim`] speaks to whichever of them serves SCIM. [`cluster`] is a whole running system in one line;
//! [`flow`] replays a vendor's client in front of one;
//! [`world`] is one inside this process, driven by hand; [`load`] writes to it and remembers what was
//! acknowledged; [`checkers`] prove what must hold afterwards.

pub mod checkers;
pub mod child;
pub mod clock;
pub mod cluster;
pub mod downstream;
pub mod expected;
pub mod flow;
pub mod http;
pub mod load;
pub mod nats;
pub mod postgres;
pub mod process;
pub mod scim;
pub mod scim2_server;
pub mod world;
