//! Development only: what every test of the house builds its world from.
//!
//! Real servers run as child processes ([`postgres`], [`nats`], [`process`]), downstream applications are
//! scriptable ([`downstream`]), time and chance are moved by hand or drawn from a seed ([`clock`]), and
//! [`scim`] speaks to whichever of them serves SCIM.

pub mod child;
pub mod clock;
pub mod downstream;
pub mod http;
pub mod nats;
pub mod postgres;
pub mod process;
pub mod scim;
