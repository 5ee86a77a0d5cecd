//! What a cluster has, and what it gives and takes: the `source`s of its services (`files`, and VMs that `registered`
//! themselves), the slices that come of them (`registry`), what other clusters may know of (`exports`, `reachability`),
//! and what of theirs is used here (`imports`).

pub mod exports;
pub mod files;
pub mod imports;
pub mod reachability;
pub mod registered;
pub mod registry;
pub mod source;
