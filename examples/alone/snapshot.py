#!/usr/bin/env python3
"""Makes a snapshot for `outrider-proxy --snapshot` of resources in Envoy's JSON.

    pip install xds-protos
    ./snapshot.py resources.json > snapshot

The input is a list of resources, each with its "@type". The output is one DeltaDiscoveryResponse for each type, each
behind its length as a varint.
"""

import json
import sys

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2, json_format

# What a resource may be made of: each import above makes messages known to the JSON reader.
_ = (fault_pb2, local_rate_limit_pb2, rbac_pb2, router_pb2, tls_inspector_pb2, http_connection_manager_pb2)
_ = (network_rbac_pb2, tcp_proxy_pb2, tls_pb2, http_protocol_options_pb2)

KINDS = [
    cluster_pb2.Cluster,
    endpoint_pb2.ClusterLoadAssignment,
    listener_pb2.Listener,
    route_pb2.RouteConfiguration,
    secret_pb2.Secret,
]


def delimited(message):
    data = message.SerializeToString(deterministic=True)
    length, prefix = len(data), bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + data


def main():
    with open(sys.argv[1]) as file:
        resources = [json_format.ParseDict(one, any_pb2.Any()) for one in json.load(file)]
    kinds = {"type.googleapis.com/" + kind.DESCRIPTOR.full_name: kind for kind in KINDS}
    unknown = sorted({resource.type_url for resource in resources} - kinds.keys())
    if unknown:
        sys.exit(f"no resources that a proxy has: {', '.join(unknown)}")
    for url, kind in kinds.items():
        answer = discovery_pb2.DeltaDiscoveryResponse(type_url=url, nonce="1")
        for resource in resources:
            if resource.type_url == url:
                message = kind.FromString(resource.value)
                name = message.cluster_name if kind is endpoint_pb2.ClusterLoadAssignment else message.name
                answer.resources.add(name=name, version="1", resource=resource)
        sys.stdout.buffer.write(delimited(answer))


main()
