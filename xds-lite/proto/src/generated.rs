//! Generated code for the `.proto` files beside `src`, which document each field. `tests/generated.rs`
//! regenerates and compares it.

pub mod isthmus {
    pub mod v1 {
        include!("generated/isthmus.v1.rs");
    }
}

pub mod envoy {
    pub mod config {
        pub mod cluster {
            pub mod v3 {
                include!("generated/envoy.config.cluster.v3.rs");
            }
        }

        pub mod core {
            pub mod v3 {
                include!("generated/envoy.config.core.v3.rs");
            }
        }

        pub mod endpoint {
            pub mod v3 {
                include!("generated/envoy.config.endpoint.v3.rs");
            }
        }

        pub mod listener {
            pub mod v3 {
                include!("generated/envoy.config.listener.v3.rs");
            }
        }

        pub mod rbac {
            pub mod v3 {
                include!("generated/envoy.config.rbac.v3.rs");
            }
        }

        pub mod route {
            pub mod v3 {
                include!("generated/envoy.config.route.v3.rs");
            }
        }
    }

    pub mod extensions {
        pub mod filters {
            pub mod network {
                pub mod http_connection_manager {
                    pub mod v3 {
                        include!("generated/envoy.extensions.filters.network.http_connection_manager.v3.rs");
                    }
                }

                pub mod rbac {
                    pub mod v3 {
                        include!("generated/envoy.extensions.filters.network.rbac.v3.rs");
                    }
                }

                pub mod tcp_proxy {
                    pub mod v3 {
                        include!("generated/envoy.extensions.filters.network.tcp_proxy.v3.rs");
                    }
                }
            }
        }

        pub mod transport_sockets {
            pub mod proxy_protocol {
                pub mod v3 {
                    include!("generated/envoy.extensions.transport_sockets.proxy_protocol.v3.rs");
                }
            }

            pub mod tls {
                pub mod v3 {
                    include!("generated/envoy.extensions.transport_sockets.tls.v3.rs");
                }
            }
        }
    }

    pub mod service {
        pub mod discovery {
            pub mod v3 {
                include!("generated/envoy.service.discovery.v3.rs");
            }
        }
    }

    pub mod r#type {
        pub mod matcher {
            pub mod v3 {
                include!("generated/envoy.r#type.matcher.v3.rs");
            }
        }

        pub mod v3 {
            include!("generated/envoy.r#type.v3.rs");
        }
    }
}

pub mod google {
    pub mod api {
        pub mod expr {
            pub mod v1alpha1 {
                include!("generated/google.api.expr.v1alpha1.rs");
            }
        }
    }

    pub mod rpc {
        include!("generated/google.rpc.rs");
    }
}

pub mod istio {
    pub mod v1 {
        pub mod auth {
            include!("generated/istio.v1.auth.rs");
        }
    }
}

pub mod xds {
    pub mod core {
        pub mod v3 {
            include!("generated/xds.core.v3.rs");
        }
    }

    pub mod r#type {
        pub mod matcher {
            pub mod v3 {
                include!("generated/xds.r#type.matcher.v3.rs");
            }
        }
    }
}
