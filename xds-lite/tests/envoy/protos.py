"""Compares descriptors, a FileDescriptorSet on stdin, with those of xds-protos: each message, field and value of
ours must be there with the same number, type and place, and nothing may be missing of what is kept whole.
Prints how many fields were compared. Not a test itself: `grpcio.rs` is."""

import importlib
import sys

from google.protobuf import descriptor_pb2, descriptor_pool

# Nothing in these goes unread: it would widen access.
WHOLE = """
envoy.config.listener.v3.FilterChain
envoy.config.listener.v3.FilterChainMatch
envoy.config.listener.v3.ListenerFilter
envoy.config.rbac.v3
envoy.config.route.v3.HeaderMatcher
envoy.extensions.filters.network.rbac.v3
envoy.type.matcher.v3.
envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext
envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher
""".split()
# Where xds-protos has what our files, which are fewer, hold together.
MODULES = """
envoy.config.cluster.v3.cluster envoy.config.listener.v3.listener envoy.config.endpoint.v3.endpoint
envoy.config.core.v3.health_check envoy.config.rbac.v3.rbac envoy.service.discovery.v3.ads
envoy.extensions.filters.network.rbac.v3.rbac envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy
envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager envoy.config.route.v3.route
envoy.extensions.transport_sockets.proxy_protocol.v3.upstream_proxy_protocol
envoy.extensions.transport_sockets.tls.v3.tls envoy.type.matcher.v3.filter_state xds.type.matcher.v3.matcher
xds.core.v3.cidr xds.core.v3.extension
""".split()

for module in MODULES:
    importlib.import_module(module + "_pb2")
pool, compared = descriptor_pool.Default(), 0


def shape(message, field):
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
    return field.number, field.label, field.type, field.type_name, oneof


def compare_enum(name, ours):
    theirs = {value.name: value.number for value in pool.FindEnumTypeByName(name).values}
    for value in ours.value:
        assert theirs[value.name] == value.number, (name, value)


def compare(name, ours):
    global compared
    theirs = descriptor_pb2.DescriptorProto()
    pool.FindMessageTypeByName(name).CopyToProto(theirs)
    fields = {field.name: field for field in theirs.field}
    for field in ours.field:
        assert field.name in fields, f"{name} has no {field.name}"
        expected, found = shape(theirs, fields[field.name]), shape(ours, field)
        assert found == expected, f"{name}.{field.name}: {found}, but {expected}"
        compared += 1
    if name.startswith(tuple(WHOLE)):
        missing = fields.keys() - {field.name for field in ours.field}
        assert not missing, f"{name} lacks {missing}"
    for nested in ours.nested_type:
        compare(f"{name}.{nested.name}", nested)
    for nested in ours.enum_type:
        compare_enum(f"{name}.{nested.name}", nested)


for file in descriptor_pb2.FileDescriptorSet.FromString(sys.stdin.buffer.read()).file:
    if file.package.startswith(("envoy.", "xds.")):
        for message in file.message_type:
            compare(f"{file.package}.{message.name}", message)
        for enum in file.enum_type:
            compare_enum(f"{file.package}.{enum.name}", enum)
print(compared)
