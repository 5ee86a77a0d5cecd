"""A scripted control plane like istiod: Clusters, ClusterLoadAssignments and one Listener over delta ADS and mTLS.

It reads commands as lines of JSON from standard input and writes events as lines of JSON to standard output.

    {"clusters": {NAME: PATCH, ...}}         adds these Clusters, of type EDS, with PATCH merged in
    {"assign": {NAME: [[IP, PORT], ...]}}    assigns these endpoints; null removes the assignment
    {"chains": [CHAIN, ...]}                 replaces the Listener's chains: {"sni": ..., "cluster": ..., "patch": {...}},
                                             or, with an explicit "match", {"sni": NAME, "match": {...}}
    {"drop": [NAME, ...]}                    removes these Clusters
    {"certificate": [PEM, ...]}             the answer to the next request for a certificate; null refuses it
    {"raw": {KIND: {NAME: [HEX, TIMES]}}}    bytes instead of a message, repeated TIMES; null removes them

A resource's version is a hash of its content, so it is the same after a restart.
"""

import argparse
import hashlib
import json
import queue
import sys
import threading
from concurrent import futures

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2  # noqa: F401, known to patches
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, json_format, message_factory

PREFIX = "type.googleapis.com/envoy.config."
CLUSTER = PREFIX + "cluster.v3.Cluster"
ASSIGNMENT = PREFIX + "endpoint.v3.ClusterLoadAssignment"
LISTENER = PREFIX + "listener.v3.Listener"
TYPES = [CLUSTER, ASSIGNMENT, LISTENER]  # make before break
NAME = "0.0.0.0_15443"
ALPN = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"]


def say(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)


def cluster(name, patch):
    message = json_format.ParseDict(
        {
            "name": name,
            "type": "EDS",
            "edsClusterConfig": {
                "edsConfig": {"ads": {}, "initialFetchTimeout": "0s", "resourceApiVersion": "V3"},
                "serviceName": name,
            },
            "connectTimeout": "10s",
            "lbPolicy": "LEAST_REQUEST",
            "circuitBreakers": {
                "thresholds": [{"maxConnections": 4294967295, "maxRequests": 4294967295, "trackRemaining": True}]
            },
            "commonLbConfig": {},
            "metadata": {"filterMetadata": {"istio": {"services": [{"host": name, "namespace": "shop"}]}}},
        },
        cluster_pb2.Cluster(),
    )
    # istiod puts a filter of its own before tcp_proxy, whose type only Istio's proxies know.
    exchange = message.filters.add(name="istio.metadata_exchange")
    exchange.typed_config.type_url = "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange"
    exchange.typed_config.value = b"\x0a\x14istio-peer-exchange\x10\x01"
    return json_format.ParseDict(patch, message)


def assignment(name, endpoints):
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    if endpoints:
        group = message.endpoints.add()
        group.locality.region = "eu-west"
        group.load_balancing_weight.value = len(endpoints)
        for ip, port in endpoints:
            one = group.lb_endpoints.add(health_status="HEALTHY")
            one.load_balancing_weight.value = 1
            one.endpoint.address.socket_address.address = ip
            one.endpoint.address.socket_address.port_value = port
            one.metadata.filter_metadata["istio"].update({"workload": "web-v1;shop;web;v1;east"})
    return message


def chain(spec):
    message = listener_components_pb2.FilterChain(name=spec["sni"])
    message.filter_chain_match.server_names.append(spec["sni"])
    message.filter_chain_match.application_protocols.extend(ALPN)
    stats = message.filters.add(name="istio.stats")
    stats.typed_config.type_url = "type.googleapis.com/stats.PluginConfig"
    proxy = tcp_proxy_pb2.TcpProxy(stat_prefix=spec["sni"], cluster=spec.get("cluster", spec["sni"]))
    message.filters.add(name="envoy.filters.network.tcp_proxy").typed_config.Pack(proxy)
    if "match" in spec:
        message.ClearField("filter_chain_match")
        json_format.ParseDict(spec["match"], message.filter_chain_match)
    return json_format.ParseDict(spec.get("patch", {}), message)


def listener(chains):
    message = listener_pb2.Listener(name=NAME, traffic_direction="OUTBOUND")
    message.address.socket_address.address = "0.0.0.0"
    message.address.socket_address.port_value = 15443
    inspector = message.listener_filters.add(name="envoy.filters.listener.tls_inspector")
    inspector.typed_config.Pack(tls_inspector_pb2.TlsInspector())
    message.filter_chains.extend(chain(spec) for spec in chains)
    return message


class World:
    """All resources, and the streams to notify of changes."""

    def __init__(self):
        self.lock = threading.Lock()
        self.resources = {kind: {} for kind in TYPES}
        self.streams = []
        self.certificates = queue.Queue()

    def put(self, kind, name, message):
        wrapped = any_pb2.Any()
        wrapped.Pack(message, deterministic=True)
        self.keep(kind, name, wrapped)

    def keep(self, kind, name, wrapped):
        version = hashlib.sha256(wrapped.value).hexdigest()[:16]
        self.resources[kind][name] = discovery_pb2.Resource(name=name, version=version, resource=wrapped)

    def do(self, command):
        if "certificate" in command:
            return self.certificates.put(command["certificate"])
        with self.lock:
            for name, patch in command.get("clusters", {}).items():
                self.put(CLUSTER, name, cluster(name, patch))
            for name, endpoints in command.get("assign", {}).items():
                if endpoints is None:
                    self.resources[ASSIGNMENT].pop(name, None)
                else:
                    self.put(ASSIGNMENT, name, assignment(name, endpoints))
            if "chains" in command:
                self.put(LISTENER, NAME, listener(command["chains"]))
            for name in command.get("drop", []):
                self.resources[CLUSTER].pop(name, None)
            for kind, raw in command.get("raw", {}).items():
                kind = next(known for known in TYPES if known.endswith("." + kind))
                for name, content in raw.items():
                    self.resources[kind].pop(name, None)
                    if content:
                        value = bytes.fromhex(content[0]) * content[1]
                        self.keep(kind, name, any_pb2.Any(type_url=kind, value=value))
            for stream in self.streams:
                stream.inbox.put("changed")


class Followed:
    """The state of one type on one stream."""

    def __init__(self, request):
        names = list(request.resource_names_subscribe)
        self.all = not names or "*" in names
        self.names = set(names)
        self.sent = dict(request.initial_resource_versions)
        self.in_flight = None

    def response(self, kind, resources):
        """Sends the changes since the last response, unless an answer is pending."""
        if self.in_flight:
            return None
        wanted = resources if self.all else {name: resources[name] for name in self.names if name in resources}
        changed = [one for name, one in wanted.items() if self.sent.get(name) != one.version]
        absent = set(self.sent if self.all else self.names) - set(wanted)
        gone = [name for name in absent if self.sent.get(name) != ""]
        if not changed and not gone:
            return None
        self.sent.update({one.name: one.version for one in changed})
        self.sent.update({name: "" for name in gone})
        self.in_flight = hashlib.sha256(repr((kind, self.sent)).encode()).hexdigest()[:16]
        return discovery_pb2.DeltaDiscoveryResponse(
            type_url=kind, nonce=self.in_flight, resources=changed, removed_resources=gone
        )


class Stream:
    def __init__(self, world):
        self.world = world
        self.inbox = queue.Queue()
        self.followed = {}

    def listen(self, requests):
        try:
            for request in requests:
                self.inbox.put(request)
        except grpc.RpcError:
            pass
        self.inbox.put(None)

    def take(self, request):
        kind = request.type_url
        followed = self.followed.get(kind)
        say(
            "request",
            type=kind.rsplit(".")[-1],
            first=followed is None,
            subscribe=sorted(request.resource_names_subscribe)[:5],
            unsubscribe=sorted(request.resource_names_unsubscribe)[:5],
            known=len(request.initial_resource_versions),
            answers=bool(request.response_nonce),
            nack=request.error_detail.message,
        )
        if followed is None:
            self.followed[kind] = Followed(request)
            return
        if request.response_nonce == followed.in_flight:
            followed.in_flight = None
        for name in request.resource_names_subscribe:
            followed.names.add(name)
            followed.sent.pop(name, None)
        for name in request.resource_names_unsubscribe:
            followed.names.discard(name)
            followed.sent.pop(name, None)

    def responses(self):
        while True:
            item = self.inbox.get()
            if item is None:
                return
            with self.world.lock:
                if item != "changed":
                    self.take(item)
                ready = [
                    self.followed[kind].response(kind, self.world.resources[kind])
                    for kind in TYPES
                    if kind in self.followed
                ]
            for response in filter(None, ready):
                say(
                    "sent",
                    type=response.type_url.rsplit(".")[-1],
                    resources=len(response.resources),
                    removed=len(response.removed_resources),
                )
                yield response


class Discovery(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def __init__(self, world):
        self.world = world

    def DeltaAggregatedResources(self, requests, context):
        first = next(requests)
        names = context.auth_context().get("x509_subject_alternative_name", [])
        node = json_format.MessageToDict(first.node)
        say("stream", node=node, peer=[name.decode() for name in names])
        stream = Stream(self.world)
        stream.inbox.put(first)
        with self.world.lock:
            self.world.streams.append(stream)
        threading.Thread(target=stream.listen, args=(requests,), daemon=True).start()
        try:
            yield from stream.responses()
        finally:
            with self.world.lock:
                self.world.streams.remove(stream)


def certificate_messages():
    file = descriptor_pb2.FileDescriptorProto(name="ca.proto", package="istio.v1.auth", syntax="proto3")
    text = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
    for name, field, label in [("Request", "csr", 1), ("Response", "cert_chain", 3)]:
        message = file.message_type.add(name=name)
        message.field.add(name=field, number=1, type=text, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = [pool.FindMessageTypeByName("istio.v1.auth." + name) for name in ["Request", "Response"]]
    return [message_factory.GetMessageClass(message) for message in found]


def certificates(world):
    """Istio's certificate API: reports requests as events; the answers come as commands."""
    request_class, response_class = certificate_messages()

    def create(request, context):
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        say("csr", csr=request.csr, metadata=metadata)
        chain = world.certificates.get(timeout=60)
        if chain is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is of nobody")
        return response_class(cert_chain=chain)

    method = grpc.unary_unary_rpc_method_handler(
        create,
        request_deserializer=request_class.FromString,
        response_serializer=response_class.SerializeToString,
    )
    name = "istio.v1.auth.IstioCertificateService"
    return grpc.method_handlers_generic_handler(name, {"CreateCertificate": method})


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    for name in ["--address", "--certificate", "--key", "--roots"]:
        arguments.add_argument(name, required=True)
    # Like istiod, for clients without a certificate.
    arguments.add_argument("--open", action="store_true")
    given = arguments.parse_args()
    world = World()
    server = grpc.server(
        futures.ThreadPoolExecutor(8),
        options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)],
    )
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Discovery(world), server)
    server.add_generic_rpc_handlers((certificates(world),))
    credentials = grpc.ssl_server_credentials(
        [(read(given.key), read(given.certificate))], read(given.roots), require_client_auth=not given.open
    )
    # The first resources exist before any client can connect.
    world.do(json.loads(sys.stdin.readline()))
    port = server.add_secure_port(given.address, credentials)
    server.start()
    say("listening", port=port)
    for line in sys.stdin:
        world.do(json.loads(line))


if __name__ == "__main__":
    main()
