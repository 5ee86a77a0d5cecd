//! The registry of a cluster: `source`s of services (`files`, and VMs that are `registered`), the slices made
//! of them (`registry`) with the rules for their callers (`access`), the services exported to other clusters (`exports`,
//! `reachability`), the services imported from them (`imports`), and the policy of their traffic (`traffic`).

pub mod access;
pub mod exports;
pub mod files;
pub mod imports;
pub mod reachability;
pub mod registered;
pub mod registry;
pub mod source;
pub mod traffic;
