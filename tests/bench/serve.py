#!/usr/bin/env python3
"""A small image classifier, served over HTTP on loopback by ONNX Runtime on one CPU.

serve.py make FILE       writes the model: two convolutions and a dense layer, seeded random weights
serve.py serve FILE CPU  loads it from the file, says `ready PORT`, serves until standard input ends
serve.py yardstick FILE CPU  the same, and measures: before each answer it works for itself, without a system call. It runs
    the model twice: what the hooks of the request left in the caches is paid for in the first run, the second one is a
    yardstick of arithmetic. Then it goes twice through much code, as a request does; the second time is a yardstick of
    that, so that neither is slower for what a hook left. A request costs the time from there to the next second run of
    the model, less one such run (for the first one). The answer has a header `Yardsticks: N NS NS`: that cost over the
    geometric mean of the two yardsticks, and these, each of them the mean of before and after. After the word `spin` on
    standard input each request takes a hundredth longer, after any other word it does not: a cost that is to be found.

A request's body is an image of 3 x 32 x 32 bytes; the answer is ten numbers.
"""

import ast
import base64
import datetime
import decimal
import email.utils
import fractions
import html
import json
import os
import re
import selectors
import shlex
import socket
import statistics
import string
import struct
import sys
import textwrap
import time
import urllib.parse
import zlib

SEED = 7
CHANNELS, SIDE, FEATURES, CLASSES = 3, 32, 32, 10
SPIN = 0.01
# Nobody asked for so many yardsticks: what came between is no request's.
PAUSE = 20
BODY = CHANNELS * SIDE * SIDE
LINE = json.dumps({"id": 7, "name": "a <b> & c", "tags": ["x", "y z"], "score": 0.25, "none": None})


def much_code():
    """Much code, once and not in a loop, and no system call (seen with strace)."""
    json.dumps(json.loads(LINE))
    re.sub(r"[a-z]+", lambda match: match.group().upper(), LINE)
    html.escape(LINE)
    textwrap.shorten(LINE, 40)
    datetime.datetime.fromisoformat("2020-01-02T03:04:05").isoformat()
    fractions.Fraction(3, 7) + fractions.Fraction(1, 3)
    ast.literal_eval("{'a': [1, 2]}")
    string.Template("$a b").substitute(a=1)
    decimal.Decimal("1.25").sqrt()
    urllib.parse.parse_qs("query=1&more=2")
    email.utils.parseaddr("A B <a@b.c>")
    shlex.split("a 'b c' d")
    statistics.median([3.0, 1.0, 2.0])
    struct.unpack("<IHB", struct.pack("<IHB", 1, 2, 3))
    zlib.crc32(base64.b64encode(LINE.encode()))


def make(path):
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(SEED)

    def weights(name, *shape):
        fan_in = int(np.prod(shape[1:])) or 1
        values = random.standard_normal(shape) / np.sqrt(fan_in)
        return numpy_helper.from_array(values.astype(np.float32), name)

    tensors = [
        weights("w1", FEATURES, CHANNELS, 3, 3),
        weights("w2", FEATURES, FEATURES, 3, 3),
        weights("w3", CLASSES, FEATURES),
    ]
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a1"], **same),
        helper.make_node("Relu", ["a1"], ["a2"]),
        helper.make_node("Conv", ["a2", "w2"], ["a3"], **same),
        helper.make_node("Relu", ["a3"], ["a4"]),
        helper.make_node("GlobalAveragePool", ["a4"], ["a5"]),
        helper.make_node("Flatten", ["a5"], ["a6"]),
        helper.make_node("Gemm", ["a6", "w3"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, CLASSES])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, path)


def serve(path, cpu, measures):
    os.sched_setaffinity(0, {cpu})
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(body):
        image = np.frombuffer(body, dtype=np.uint8).astype(np.float32) / 255.0
        scores = session.run(None, {"image": image.reshape(1, CHANNELS, SIDE, SIDE)})[0]
        return ",".join(f"{score:.6f}" for score in scores[0]).encode()

    own = np.zeros((1, CHANNELS, SIDE, SIDE), dtype=np.float32)
    random = np.random.default_rng(SEED)
    # Written to: memory that never was is one page of zeros.
    table = random.integers(256, size=1 << 17, dtype=np.uint8)
    places = random.permutation(table.size)[:2000]
    clock = time.perf_counter_ns
    before, spins = None, False

    def measure():
        nonlocal before
        session.run(None, {"image": own})
        start = clock()
        session.run(None, {"image": own})
        model = clock() - start
        for _ in range(2):
            begun = clock()
            much_code()
            table[places].sum()
            end = clock()
        last, before = before, (model, end - begun, end)
        if last is None:
            return None
        model = (last[0] + model) / 2
        code = (last[1] + end - begun) / 2
        cost = (start - last[2] - model) / (model * code) ** 0.5
        return (cost, model, code) if cost < PAUSE else None

    answer(bytes(BODY))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ, "listener")
    ready.register(sys.stdin, selectors.EVENT_READ, "end")
    print("ready", listener.getsockname()[1], flush=True)
    while True:
        for key, _ in ready.select():
            if key.data == "end":
                word = os.read(sys.stdin.fileno(), 64)
                if not word:
                    return
                spins = word.split()[-1:] == [b"spin"]
                continue
            if key.data == "listener":
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ready.register(connection, selectors.EVENT_READ, bytearray())
                continue
            connection, read = key.fileobj, key.data
            try:
                part = connection.recv(65536)
            except ConnectionError:
                part = b""
            if not part:
                ready.unregister(connection)
                connection.close()
                continue
            read += part
            head = read.find(b"\r\n\r\n")
            if head < 0 or len(read) < head + 4 + BODY:
                continue
            measured = measure() if measures else None
            more = b"Yardsticks: %.6f %.0f %.0f\r\n" % measured if measured else b""
            body = answer(bytes(read[head + 4 : head + 4 + BODY]))
            del read[: head + 4 + BODY]
            connection.sendall(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (more, len(body), body))
            if spins and measured:
                cost, model, code = measured
                until = clock() + SPIN * cost * (model * code) ** 0.5
                while clock() < until:
                    pass


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "make":
        make(sys.argv[2])
    elif len(sys.argv) == 4 and sys.argv[1] in ("serve", "yardstick"):
        serve(sys.argv[2], int(sys.argv[3]), sys.argv[1] == "yardstick")
    else:
        sys.exit(__doc__)
