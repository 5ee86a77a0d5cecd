//! The shared model of the control plane: host and cluster names, localities, addresses, services and the policy of
//! their traffic, slices and their wire form; the pages of the admin APIs; and the reading of YAML files, with values that know their place and
//! units, and a report of all problems with line and column. Pure: no sockets, no runtime.

pub mod access;
pub mod address;
pub mod admin;
pub mod allotment;
pub mod at;
pub mod binding;
pub mod cluster;
pub mod file;
pub mod host;
pub mod identity;
pub mod labels;
pub mod locality;
pub mod matrix;
pub mod port_allotment;
pub mod port_range;
pub mod problem;
mod registry_file;
pub mod services;
pub mod slice;
pub mod slice_store;
pub mod sni;
pub mod traffic;
pub mod units;
mod usage;
pub mod values;
pub mod virtual_address;
pub mod yaml;

pub use host::{HostName, HostPattern};
pub use labels::Labels;
pub use locality::Locality;
pub use problem::{Problem, Problems};
pub use registry_file::registry_file;
pub use slice::Slice;
pub use slice_store::SliceStore;
pub use usage::Usage;
