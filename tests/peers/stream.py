"""Server and clients of gRPC in plaintext, for the test `applications/grpc.rs`.

    stream.py serve             serves, prints its port, and echoes each message, until its stdin ends
    stream.py stream TARGET     keeps one stream busy; for each line of stdin prints how many messages have come back,
                                after at least one more has, or what broke it
    stream.py call TARGET       for each line of stdin makes a call over a new channel, and prints `ok` or its status"""

import queue
import sys
import threading
import time
from concurrent import futures

import grpc

METHOD = "/isthmus.Test/Echo"
PAUSE = 0.02


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Echo(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


def numbers():
    number = 0
    while True:
        yield str(number).encode()
        number += 1
        time.sleep(PAUSE)


def stream(target):
    counts = queue.Queue(maxsize=1)

    def run():
        channel = grpc.insecure_channel(target)
        count = 0
        try:
            for answer in channel.stream_stream(METHOD)(numbers()):
                if answer != str(count).encode():
                    raise ValueError(f"{answer} came back for {count}")
                count += 1
                try:
                    counts.put_nowait(count)
                except queue.Full:
                    pass
        except (grpc.RpcError, ValueError) as error:
            print(error, file=sys.stderr, flush=True)
        while True:
            counts.put("broken")

    threading.Thread(target=run, daemon=True).start()
    for _ in sys.stdin:
        counts.get()
        print(counts.get(timeout=30), flush=True)


def call(target):
    for _ in sys.stdin:
        with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                answers = list(channel.stream_stream(METHOD)(iter([b"x"]), timeout=10))
                print("ok" if answers == [b"x"] else answers, flush=True)
            except grpc.RpcError as error:
                print(error.code().name, flush=True)


if sys.argv[1] == "serve":
    serve()
elif sys.argv[1] == "stream":
    stream(sys.argv[2])
else:
    call(sys.argv[2])
