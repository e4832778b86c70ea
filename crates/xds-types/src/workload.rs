//! Desired state of an instance of one service, as the control plane tells it to hosts.
//!
//! Travels over the same delta ADS stream as everything else (type `outrider.v1.Workload`, named
//! `NS/SERVICE`), so it is watched, acknowledged and kept as last good like any resource.

/// What a host must know to run an instance of a service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Workload {
    /// `NS/SERVICE`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// SPIFFE ID its proxies present.
    #[prost(string, tag = "2")]
    pub spiffe_id: String,
    /// `native` or `envoy`.
    #[prost(string, tag = "3")]
    pub engine: String,
    /// `client`, `server` or `client-server`.
    #[prost(string, tag = "4")]
    pub role: String,
    /// Ports it serves.
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<WorkloadPort>,
    /// Names of the outbound listeners its proxies get, so that a host can tell a whole set from half of one.
    #[prost(string, repeated, tag = "6")]
    pub outbound: Vec<String>,
}

/// One served port.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WorkloadPort {
    /// The port's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Where the application listens on loopback.
    #[prost(uint32, tag = "2")]
    pub target_port: u32,
    /// `http`, `http2`, `grpc` or `tcp`.
    #[prost(string, tag = "3")]
    pub protocol: String,
}
