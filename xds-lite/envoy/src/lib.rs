//! Translates Envoy's tables: `export` makes them of slices, for stock Envoys; `import` reads those of other control
//! planes.

pub mod export;
pub mod import;
