"""A delta ADS server of grpcio and the messages of xds-protos: `server.py ADDRESS STATE [SECRETS]`.

STATE is a file of JSON, read again and again: {"port", "second", "api": [ports], "also": [ports], "bad"}. What the
proxy says is printed, one JSON object a line: {"type", "subscribe", "unsubscribe", "initial"}, {"type", "ack"} or
{"type", "nack": message}. SECRETS is a folder with chain.pem, key.pem and the authorities of callers, callers.pem.
"""

import hashlib
import json
import os
import sys
import threading
import time
from concurrent import futures

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, config_source_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration

TYPES = {
    "cluster": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "endpoints": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
    "listener": "type.googleapis.com/envoy.config.listener.v3.Listener",
    "routes": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
}
NAMES = {url: name for name, url in TYPES.items()}
SAYING = threading.Lock()


def say(**what):
    with SAYING:
        print(json.dumps(what), flush=True)


def packed(message):
    any_message = Any()
    any_message.Pack(message, deterministic=True)
    return any_message


def place(port):
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address="127.0.0.1", port_value=port))


def over_ads():
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.V3
    )


def listener(name, port):
    manager = hcm_pb2.HttpConnectionManager(
        codec_type=hcm_pb2.HttpConnectionManager.HTTP1,
        stat_prefix=name,
        rds=hcm_pb2.Rds(config_source=over_ads(), route_config_name="all"),
        http_filters=[hcm_pb2.HttpFilter(name="router", typed_config=packed(router_pb2.Router()))],
    )
    chain = listener_components_pb2.FilterChain(
        filters=[listener_components_pb2.Filter(name="http", typed_config=packed(manager))]
    )
    return listener_pb2.Listener(name=name, address=place(port), filter_chains=[chain])


def routes(state):
    def route(prefix, cluster):
        return route_components_pb2.Route(
            match=route_components_pb2.RouteMatch(prefix=prefix),
            route=route_components_pb2.RouteAction(cluster=cluster),
        )

    all_of_them = [route("/also", "also")] if state["also"] else []
    host = route_components_pb2.VirtualHost(name="all", domains=["*"], routes=all_of_them + [route("/", "api")])
    return route_pb2.RouteConfiguration(name="all", virtual_hosts=[host])


def cluster(name, kind):
    message = cluster_pb2.Cluster(name=name, type=kind, connect_timeout=Duration(seconds=1))
    if kind == cluster_pb2.Cluster.EDS:
        message.eds_cluster_config.eds_config.CopyFrom(over_ads())
    return message


def endpoints(name, ports):
    parts = [
        endpoint_components_pb2.LbEndpoint(endpoint=endpoint_components_pb2.Endpoint(address=place(port)))
        for port in ports
    ]
    group = endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=parts)
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=name, endpoints=[group])


def resources(state):
    """All there is: by type, by name, with its version."""
    found = {name: {} for name in TYPES}
    found["listener"]["first"] = listener("first", state["port"])
    if state["second"]:
        found["listener"]["second"] = listener("second", state["second"])
    found["routes"]["all"] = routes(state)
    for name in ["api", "also"]:
        if state[name]:
            found["cluster"][name] = cluster(name, cluster_pb2.Cluster.EDS)
            found["endpoints"][name] = endpoints(name, state[name])
    if state["bad"]:
        found["cluster"]["bad"] = cluster("bad", cluster_pb2.Cluster.STRICT_DNS)

    def version(message):
        return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()[:12]

    return {kind: {name: (version(one), one) for name, one in of.items()} for kind, of in found.items()}


class Asked:
    """What one stream wants of a type, and has."""

    def __init__(self):
        self.everything = False
        self.names = set()
        self.sent = {}
        self.answered = False


class Server(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def __init__(self, path):
        self.path = path

    def DeltaAggregatedResources(self, requests, context):
        asked, lock, over = {}, threading.Lock(), threading.Event()

        def listen():
            try:
                for request in requests:
                    with lock:
                        self.heard(asked, request)
            except grpc.RpcError:
                pass
            over.set()

        threading.Thread(target=listen, daemon=True).start()
        nonce = 0
        while not over.is_set():
            with open(self.path) as file:
                have = resources(json.load(file))
            for kind, url in TYPES.items():
                with lock:
                    response = self.difference(asked.get(url), have[kind])
                if response is not None:
                    nonce += 1
                    response.type_url, response.nonce = url, str(nonce)
                    yield response
            time.sleep(0.02)

    def heard(self, asked, request):
        kind = NAMES.get(request.type_url, request.type_url)
        if request.HasField("error_detail"):
            say(type=kind, nack=request.error_detail.message)
        elif request.response_nonce:
            say(type=kind, ack=request.response_nonce)
        subscribe, unsubscribe = list(request.resource_names_subscribe), list(request.resource_names_unsubscribe)
        wanted = asked.get(request.type_url)
        if wanted is None:
            wanted = asked[request.type_url] = Asked()
            wanted.everything = not subscribe
            wanted.sent = dict(request.initial_resource_versions)
        elif not subscribe and not unsubscribe:
            return
        say(type=kind, subscribe=subscribe, unsubscribe=unsubscribe, initial=len(request.initial_resource_versions))
        wanted.everything |= "*" in subscribe
        wanted.names |= set(subscribe)
        wanted.names -= set(unsubscribe)

    def difference(self, wanted, have):
        if wanted is None:
            return None
        mine = {name: one for name, one in have.items() if wanted.everything or name in wanted.names}
        new = {name: one for name, one in mine.items() if wanted.sent.get(name) != one[0]}
        gone = [name for name in wanted.sent if name not in mine]
        if not new and not gone and wanted.answered:
            return None
        wanted.answered = True
        wanted.sent = {name: version for name, (version, _) in mine.items()}
        response = discovery_pb2.DeltaDiscoveryResponse(removed_resources=gone)
        for name, (version, message) in new.items():
            response.resources.add(name=name, version=version).resource.CopyFrom(packed(message))
        return response


server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Server(sys.argv[2]), server)


def secret(name):
    with open(os.path.join(sys.argv[3], name), "rb") as file:
        return file.read()


if len(sys.argv) > 3:
    pair = (secret("key.pem"), secret("chain.pem"))
    credentials = grpc.ssl_server_credentials([pair], secret("callers.pem"), require_client_auth=True)
    port = server.add_secure_port(sys.argv[1], credentials)
else:
    port = server.add_insecure_port(sys.argv[1])
if not port:
    sys.exit(f"cannot bind {sys.argv[1]}")
server.start()
server.wait_for_termination()
