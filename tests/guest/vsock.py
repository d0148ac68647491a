"""Both ends of a stream between guest and host: each sends bytes and the other says which it has got. usage: vsock.py host SOCKET BYTES | guest BYTES
Or answers who connects and says hello: vsock.py answer SOCKET TEXT"""
import hashlib
import os
import socket
import sys
import threading

PORT, GUEST_PORT, HOST = 5000, 6000, 2


def send(stream, count):
    """Sends random bytes; their checksum."""
    check, block = hashlib.md5(), os.urandom(1 << 16)
    while count:
        part = block[:count]
        stream.sendall(part)
        check.update(part)
        count -= len(part)
    return check.hexdigest()


def receive(stream, count):
    """The checksum of what comes."""
    check = hashlib.md5()
    while count:
        part = stream.recv(min(count, 1 << 16))
        if not part:
            break
        check.update(part)
        count -= len(part)
    return check.hexdigest()


def line(stream):
    text = b""
    while not text.endswith(b"\n"):
        part = stream.recv(1)
        if not part:
            break
        text += part
    return text.decode().strip()


def exchange(stream, who, count, first):
    for turn in (first, not first):
        if turn:
            sent = send(stream, count)
            print(f"{who}: {'same' if line(stream) == sent else 'DIFFERENT'}", flush=True)
        else:
            stream.sendall(receive(stream, count).encode() + b"\n")


def host(path, count):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}_{PORT}")
    listener.listen(1)
    stream, _ = listener.accept()
    exchange(stream, "host", count, True)
    # The other direction: to a port of the guest.
    line(stream)
    other = socket.socket(socket.AF_UNIX)
    other.connect(path)
    other.sendall(f"CONNECT {GUEST_PORT}\n".encode())
    if not line(other).startswith("OK "):
        sys.exit("no OK")
    other.sendall(b"hello\n")
    other.shutdown(socket.SHUT_WR)
    print("host: echoed" if line(other) == "HELLO" else "host: not echoed", flush=True)


def guest(count):
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    stream.connect((HOST, PORT))
    exchange(stream, "guest", count, False)
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, GUEST_PORT))
    listener.listen(1)
    stream.sendall(b"listening\n")
    other, _ = listener.accept()
    other.sendall(line(other).upper().encode() + b"\n")
    other.close()
    # Until the other has read it all.
    stream.recv(1)


def answer(path, text):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}_{PORT}")
    listener.listen(4)
    streams = []
    while True:
        stream, _ = listener.accept()
        streams.append(stream)
        threading.Thread(target=lambda s: s.recv(5) and s.sendall(text.encode()), args=(stream,), daemon=True).start()


if sys.argv[1] == "answer":
    answer(sys.argv[2], sys.argv[3])
elif sys.argv[1] == "host":
    host(sys.argv[2], int(sys.argv[3]))
else:
    guest(int(sys.argv[2]))
