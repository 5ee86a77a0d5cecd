//! Helpers for the worlds: real gateways and endpoints. Filled in the next commits.
