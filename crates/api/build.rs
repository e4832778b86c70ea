//! Generates the gRPC client and server of `outrider.agent.v1.Agents` from the description below; the
//! messages are written by hand in `agent.rs`.

fn main() {
    let method = |name: &str, route: &str, input: &str, output: &str, streaming: bool| {
        let builder = tonic_build::manual::Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("crate::agent::{input}"))
            .output_type(format!("crate::agent::{output}"))
            .codec_path("tonic_prost::ProstCodec");
        if streaming { builder.client_streaming().server_streaming().build() } else { builder.build() }
    };
    let service = tonic_build::manual::Service::builder()
        .name("Agents")
        .package("outrider.agent.v1")
        .method(method("join", "Join", "JoinRequest", "JoinResponse", false))
        .method(method("sign", "Sign", "SignRequest", "SignResponse", false))
        .method(method("session", "Session", "Fact", "Instruction", true))
        .build();
    tonic_build::manual::Builder::new().compile(&[service]);
    println!("cargo:rerun-if-changed=build.rs");
}
