"""A client of the agent in grpcio and xds-protos: reads all three types once, over delta and over states of
the world, and prints what it decoded as JSON. Not a test itself: `grpcio.rs` compares.

    ads.py ADDRESS FOLDER NAME      FOLDER has tls.crt, tls.key and ca.crt; NAME is the server's DNS name
"""

import json
import pathlib
import queue
import sys

import grpc
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2 import TlsInspector
from envoy.extensions.filters.network.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.service.discovery.v3.ads_pb2_grpc import AggregatedDiscoveryServiceStub
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest

TYPES = "type.googleapis.com/"


def unpacked(any_message, kind):
    message = kind()
    assert any_message.Unpack(message), (any_message.type_url, kind.DESCRIPTOR.full_name)
    refuse_unknown(message)
    return message


def refuse_unknown(message):
    """What these protos do not know, we have invented."""
    kept = message.SerializeToString(deterministic=True)
    message.DiscardUnknownFields()
    assert message.SerializeToString(deterministic=True) == kept, message


def denied(filter):
    """Names that a filter closes: with this prefix, but for these."""
    rules = unpacked(filter.typed_config, RBAC).rules
    (policy,) = rules.policies.values()
    (permission,) = policy.permissions
    (principal,) = policy.principals
    assert rules.Action.Name(rules.action) == "DENY" and principal.any
    prefix, *others = permission.and_rules.rules
    return [prefix.requested_server_name.prefix, *(it.not_rule.requested_server_name.exact for it in others)]


def listener(any_message):
    found = unpacked(any_message, Listener)
    unpacked(found.listener_filters[0].typed_config, TlsInspector)
    chains = {}
    for chain in found.filter_chains:
        match = chain.filter_chain_match
        if not chain.filters:
            chains[chain.name] = {"closed": list(match.server_names)}
            continue
        proxy = unpacked(chain.filters[-1].typed_config, TcpProxy)
        chains[chain.name] = {
            "names": list(match.server_names),
            "alpn": list(match.application_protocols),
            "sources": [f"{it.address_prefix}/{it.prefix_len.value}" for it in match.source_prefix_ranges],
            "transport": match.transport_protocol,
            "cluster": proxy.cluster,
            "denied": [denied(it) for it in chain.filters[:-1]],
            "idle": proxy.idle_timeout.seconds,
            "by_source": [policy.WhichOneof("policy_specifier") for policy in proxy.hash_policy],
        }
    return found.name, chains


def cluster(any_message):
    found = unpacked(any_message, Cluster)
    return found.name, {
        "type": Cluster.DiscoveryType.Name(found.type),
        "policy": Cluster.LbPolicy.Name(found.lb_policy),
        "ads": found.eds_cluster_config.eds_config.WhichOneof("config_source_specifier"),
        "connect": found.connect_timeout.ToMilliseconds(),
        "panic": found.common_lb_config.HasField("healthy_panic_threshold")
        and found.common_lb_config.healthy_panic_threshold.value,
        "most": found.circuit_breakers.thresholds[0].max_connections.value,
        "socket": found.transport_socket.name,
    }


def endpoints(any_message):
    found = unpacked(any_message, ClusterLoadAssignment)
    return found.cluster_name, [
        {
            "zone": place.locality.zone,
            "address": f"{it.endpoint.address.socket_address.address}:{it.endpoint.address.socket_address.port_value}",
            "weight": it.load_balancing_weight.value,
            "health": it.health_status,
        }
        for place in found.endpoints
        for it in place.lb_endpoints
    ]


READ = {
    TYPES + Cluster.DESCRIPTOR.full_name: cluster,
    TYPES + ClusterLoadAssignment.DESCRIPTOR.full_name: endpoints,
    TYPES + Listener.DESCRIPTOR.full_name: listener,
}


class Stream:
    """Requests that are sent as they come."""

    def __init__(self, call):
        self.requests = queue.Queue()
        self.responses = call(iter(self.requests.get, None), timeout=30)

    def ask(self, request):
        self.requests.put(request)
        return next(self.responses)


def over_delta(stub):
    stream, read = Stream(stub.DeltaAggregatedResources), {}
    for type_url, decode in READ.items():
        names = read.get("cluster", {}) if decode is endpoints else []
        response = stream.ask(DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names))
        refuse_unknown(response)
        assert response.type_url == type_url
        stream.requests.put(DeltaDiscoveryRequest(type_url=type_url, response_nonce=response.nonce))
        for sent in response.resources:
            name, content = decode(sent.resource)
            assert name == sent.name
            read.setdefault(decode.__name__, {})[name] = {"version": sent.version, "content": content}
    stream.requests.put(None)
    return read


def over_states(stub):
    stream, read = Stream(stub.StreamAggregatedResources), {}
    for type_url, decode in READ.items():
        names = read["cluster"]["content"] if decode is endpoints else []
        response = stream.ask(DiscoveryRequest(type_url=type_url, resource_names=names))
        refuse_unknown(response)
        assert response.type_url == type_url
        answer = DiscoveryRequest(type_url=type_url, resource_names=names)
        answer.version_info, answer.response_nonce = response.version_info, response.nonce
        stream.requests.put(answer)
        content = dict(decode(sent) for sent in response.resources)
        read[decode.__name__] = {"version": response.version_info, "content": content}
    stream.requests.put(None)
    return read


def main():
    address, folder, name = sys.argv[1:]
    pem = {file: (pathlib.Path(folder) / file).read_bytes() for file in ["ca.crt", "tls.key", "tls.crt"]}
    credentials = grpc.ssl_channel_credentials(pem["ca.crt"], pem["tls.key"], pem["tls.crt"])
    options = [("grpc.ssl_target_name_override", name)]
    with grpc.secure_channel(address, credentials, options) as channel:
        stub = AggregatedDiscoveryServiceStub(channel)
        json.dump({"delta": over_delta(stub), "states": over_states(stub)}, sys.stdout)


main()
