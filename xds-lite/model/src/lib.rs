//! The model that every part of the control plane shares: names of hosts and clusters, localities, addresses, services,
//! slices and their wire form, and what every YAML file is read with: values that know their place and their units, and
//! a report of everything that is wrong, each with its line and column. Pure; no sockets and no runtime.

pub mod address;
pub mod at;
pub mod cluster;
pub mod file;
pub mod host;
pub mod locality;
pub mod problem;
mod registry_file;
pub mod services;
pub mod slice;
pub mod slice_store;
pub mod sni;
pub mod units;
mod usage;
pub mod values;
pub mod yaml;

pub use host::{HostName, HostPattern};
pub use locality::Locality;
pub use problem::{Problem, Problems};
pub use registry_file::registry_file;
pub use slice::Slice;
pub use slice_store::SliceStore;
pub use usage::Usage;
