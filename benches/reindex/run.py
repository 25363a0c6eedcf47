#!/usr/bin/env python3
"""Search latency of a server that answers, before and during a rebuild of its index.

Serves a collection in the form of BEIR, lets clients chat without pause, and times `GET /search`, first undisturbed, then
while `POST /admin/index` builds the same index anew. Needs Python's standard library only.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request


def guidelines(beir, folder):
    """The corpus as one JSON Lines file of guidelines; returns their number."""
    count = 0
    with open(os.path.join(beir, "corpus.jsonl"), encoding="utf-8") as corpus, open(
        os.path.join(folder, "corpus.jsonl"), "w", encoding="utf-8"
    ) as out:
        for line in corpus:
            document = json.loads(line)
            if not document.get("text", "").strip():
                continue
            count += 1
            entry = {
                "id": f"d{count}",
                "title": (document.get("title") or "untitled").strip()[:400] or "untitled",
                "edition": "1",
                "issuer": "bench",
                "jurisdiction": "INT",
                "language": "en",
                "effective_from": "2000-01-01",
                "source": "bench",
                "licence": "see the collection",
                "text": document["text"],
            }
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return count


def questions(beir):
    with open(os.path.join(beir, "queries.jsonl"), encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, binary, folder, args):
        self.url = f"http://127.0.0.1:{free_port()}"
        environment = dict(
            os.environ,
            SHISHIN_SERVER_LISTEN=self.url.removeprefix("http://"),
            SHISHIN_INDEX_GUIDELINES=os.path.join(folder, "guidelines"),
            SHISHIN_INDEX_DIRECTORY=os.path.join(folder, "index"),
            SHISHIN_INDEX_EMBEDDER=args.embedder,
            SHISHIN_ENGINE_QUEUE="64",
            SHISHIN_LOG_FILTER="warn",
        )
        self.process = subprocess.Popen(
            [binary, "serve", "--model", args.model], cwd=folder, env=environment, stdout=subprocess.DEVNULL
        )

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.load(reply)

    def wait_until_ready(self):
        while True:
            if self.process.poll() is not None:
                sys.exit("the server ended")
            try:
                return self.call("/ready")
            except OSError:
                time.sleep(0.5)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def chat(server, asked, number, over, failures):
    at = number
    while not over.is_set():
        question = asked[at % len(asked)]
        at += 1
        body = {
            "messages": [{"role": "user", "content": question}],
            "mode": "rag",
            "stream": False,
            "max_tokens": 64,
        }
        try:
            reply = server.call("/chat", body)
            own = reply["provenance"]["generation"]
            if own is None:
                failures.append("an answer without a generation")
        except Exception as error:  # noqa: BLE001: whatever it is, it is a failed request
            failures.append(repr(error))


def search(server, question):
    begun = time.perf_counter()
    server.call("/search?limit=20&q=" + urllib.parse.quote(question[:1000]))
    return (time.perf_counter() - begun) * 1e3


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shishin", default="target/release/shishin")
    parser.add_argument("--beir", required=True, help="a folder with corpus.jsonl and queries.jsonl")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--embedder", default="", help="empty: search by words alone")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30, help="of undisturbed measuring")
    args = parser.parse_args()
    binary = os.path.abspath(args.shishin)

    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "guidelines"))
        count = guidelines(args.beir, os.path.join(folder, "guidelines"))
        asked = questions(args.beir)
        begun = time.time()
        server = Server(binary, folder, args)
        try:
            server.wait_until_ready()
            print(f"{count} documents; ready after {time.time() - begun:.1f} s", flush=True)
            over, failures = threading.Event(), []
            clients = [
                threading.Thread(target=chat, args=(server, asked, n * 97, over, failures), daemon=True)
                for n in range(args.clients)
            ]
            for client in clients:
                client.start()
            time.sleep(3)
            idle, at = [], 0
            end = time.time() + args.seconds
            while time.time() < end:
                idle.append(search(server, asked[at % len(asked)]))
                at += 1
            server.call("/admin/index", {})
            begun, during = time.time(), []
            while server.call("/admin/index")["state"] == "running":
                for _ in range(5):
                    during.append(search(server, asked[at % len(asked)]))
                    at += 1
            took = time.time() - begun
            state = server.call("/admin/index")["state"]
            over.set()
            for client in clients:
                client.join()
        finally:
            server.stop()
    print(f"the rebuild ended as `{state}` after {took:.1f} s beside {args.clients} chat clients; {len(failures)} requests failed")
    print(f"{'search, ms':<18} {'searches':>9} {'median':>8} {'p99':>8}")
    for name, values in (("undisturbed", idle), ("during the rebuild", during)):
        print(f"{name:<18} {len(values):>9} {quantile(values, 0.5):>8.1f} {quantile(values, 0.99):>8.1f}")
    print(f"p99 during ÷ undisturbed: {quantile(during, 0.99) / quantile(idle, 0.99):.2f}")
    for failure in failures[:5]:
        print("failed:", failure)
    return 1 if failures or state != "done" else 0


if __name__ == "__main__":
    sys.exit(main())
