//! Generated from `proto/`, which says what each field means. `tests/proto.rs` makes it anew and compares.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "nobody wrote this"
)]

pub mod isthmus {
    pub mod v1 {
        include!("proto/isthmus.v1.rs");
    }
}

pub mod envoy {
    pub mod config {
        pub mod cluster {
            pub mod v3 {
                include!("proto/envoy.config.cluster.v3.rs");
            }
        }

        pub mod core {
            pub mod v3 {
                include!("proto/envoy.config.core.v3.rs");
            }
        }

        pub mod endpoint {
            pub mod v3 {
                include!("proto/envoy.config.endpoint.v3.rs");
            }
        }

        pub mod listener {
            pub mod v3 {
                include!("proto/envoy.config.listener.v3.rs");
            }
        }

        pub mod rbac {
            pub mod v3 {
                include!("proto/envoy.config.rbac.v3.rs");
            }
        }

        pub mod route {
            pub mod v3 {
                include!("proto/envoy.config.route.v3.rs");
            }
        }
    }

    pub mod extensions {
        pub mod filters {
            pub mod network {
                pub mod http_connection_manager {
                    pub mod v3 {
                        include!("proto/envoy.extensions.filters.network.http_connection_manager.v3.rs");
                    }
                }

                pub mod rbac {
                    pub mod v3 {
                        include!("proto/envoy.extensions.filters.network.rbac.v3.rs");
                    }
                }

                pub mod tcp_proxy {
                    pub mod v3 {
                        include!("proto/envoy.extensions.filters.network.tcp_proxy.v3.rs");
                    }
                }
            }
        }

        pub mod transport_sockets {
            pub mod proxy_protocol {
                pub mod v3 {
                    include!("proto/envoy.extensions.transport_sockets.proxy_protocol.v3.rs");
                }
            }

            pub mod tls {
                pub mod v3 {
                    include!("proto/envoy.extensions.transport_sockets.tls.v3.rs");
                }
            }
        }
    }

    pub mod service {
        pub mod discovery {
            pub mod v3 {
                include!("proto/envoy.service.discovery.v3.rs");
            }
        }
    }

    pub mod r#type {
        pub mod matcher {
            pub mod v3 {
                include!("proto/envoy.r#type.matcher.v3.rs");
            }
        }

        pub mod v3 {
            include!("proto/envoy.r#type.v3.rs");
        }
    }
}

pub mod google {
    pub mod api {
        pub mod expr {
            pub mod v1alpha1 {
                include!("proto/google.api.expr.v1alpha1.rs");
            }
        }
    }

    pub mod rpc {
        include!("proto/google.rpc.rs");
    }
}

pub mod istio {
    pub mod v1 {
        pub mod auth {
            include!("proto/istio.v1.auth.rs");
        }
    }
}

pub mod xds {
    pub mod core {
        pub mod v3 {
            include!("proto/xds.core.v3.rs");
        }
    }

    pub mod r#type {
        pub mod matcher {
            pub mod v3 {
                include!("proto/xds.r#type.matcher.v3.rs");
            }
        }
    }
}
