"""Client and server of proxyless gRPC, for the test `unproxied.rs`.

    unproxied.py serve NAME         serves with a required client certificate, prints its port, and answers with NAME
                                    and the caller's identity, until its stdin ends
    unproxied.py call               calls the targets of each line of stdin concurrently, over one channel for each
                                    target, and prints the answers and errors as a line of JSON

The working directory has tls.crt, tls.key and ca.crt. A caller's bootstrap is in its environment."""

import json
import pathlib
import sys
from concurrent import futures

import grpc

METHOD = "/isthmus.Test/Who"


def read(*files):
    return [pathlib.Path(file).read_bytes() for file in files]


class Who(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.answer) if details.method == METHOD else None

    def answer(self, request, context):
        names = context.auth_context()["x509_subject_alternative_name"]
        caller = next(name for name in names if name.startswith(b"spiffe://"))
        return b" ".join([self.name.encode(), request, caller])


def serve(name):
    root, key, chain = read("ca.crt", "tls.key", "tls.crt")
    credentials = grpc.ssl_server_credentials([(key, chain)], root, require_client_auth=True)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Who(name),))
    print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


def call():
    credentials, channels = grpc.ssl_channel_credentials(*read("ca.crt", "tls.key", "tls.crt")), {}
    for line in sys.stdin:
        calls = []
        for target in line.split():
            if target not in channels:
                channels[target] = grpc.secure_channel(target, credentials)
            calls.append(channels[target].unary_unary(METHOD).future(b"for", timeout=60))
        print(json.dumps([said(one) for one in calls]), flush=True)


def said(call):
    try:
        return {"answer": call.result().decode()}
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    call()
