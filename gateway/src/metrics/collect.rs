//! From counters to Prometheus.
