#!/usr/bin/env python3
"""Trains the same adapter on the same batches with shishin and with PyTorch + PEFT, one after the other, and compares.

    python3 benches/tune/run.py --shishin target/release/shishin --model FILE.gguf [--steps 50] [--threads 2]

Needs torch, transformers, peft and gguf. Both start from the same A and B, see the same examples in the same order, use AdamW with the
same rates, and learn the same tokens. Prints tokens per second (median of the steps but the first three), peak memory of the process,
and how far the losses are apart. PyTorch gets the weights of the GGUF file as 32-bit floats; shishin runs once on the file as it is
(`stored`) and once on floats (`f32`).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHARACTERS = 1050  # about 256 tokens with the turn marks


def dataset(path, count):
    """Examples of about 256 tokens, nearly all learnt, from the sample guidelines."""
    pieces = []
    for file in sorted((ROOT / "index/guidelines/en").glob("*.md")):
        text = file.read_text(encoding="utf-8").split("---", 2)[2].strip()
        pieces += [text[i : i + CHARACTERS] for i in range(0, len(text) - CHARACTERS, CHARACTERS)]
    with path.open("w", encoding="utf-8") as out:
        for n in range(count):
            messages = [
                {"role": "system", "content": "Go on."},
                {"role": "user", "content": f"Piece {n}"},
                {"role": "assistant", "content": pieces[n % len(pieces)]},
            ]
            out.write(json.dumps({"messages": messages}) + "\n")


def settings(args, folder, weights):
    text = f"""
objective = "A comparison."
base = {json.dumps(str(args.model))}
output = {json.dumps(str(folder / weights))}
[data]
train = [{json.dumps(str(folder / "train.jsonl"))}]
instructions = false
[lora]
rank = 16
alpha = 32.0
[training]
epochs = 1
batch = 4
learning_rate = 2e-4
checkpoint_every = 100000
weights = "{weights}"
threads = {args.threads}
"""
    path = folder / f"{weights}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def measured(command, env=None):
    """Runs a command; returns its peak memory in MB."""
    process = subprocess.Popen(command, env=env, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{command[0]} failed")
    return usage.ru_maxrss / 1000


def ours(args, folder, weights):
    path = settings(args, folder, weights)
    peak = measured([args.shishin, "--config", str(folder / "none.toml"), "tune", "--run", str(path)])
    lines = (folder / weights / "run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    steps = [s for s in steps if s["step"] > 0]
    return [s["loss"] for s in steps], [s["tokens"] / s["seconds"] for s in steps], peak


def theirs(args, folder):
    command = [sys.executable, __file__, "--worker", str(folder), "--model", str(args.model)]
    command += ["--threads", str(args.threads)]
    peak = measured(command)
    steps = json.loads((folder / "theirs.json").read_text())
    return [s["loss"] for s in steps], [s["tokens"] / s["seconds"] for s in steps], peak


def worker(args):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    folder = pathlib.Path(args.worker)
    model = pathlib.Path(args.model)
    base = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)
    net = PeftModel.from_pretrained(base, folder / "dump", is_trainable=True)
    net.train()
    trained = [p for p in net.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    results = []
    for line in (folder / "dump/steps.jsonl").open():
        step = json.loads(line)
        begun = time.perf_counter()
        longest = max(len(e["tokens"]) for e in step["examples"])
        ids = torch.zeros(len(step["examples"]), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, example in enumerate(step["examples"]):
            n = len(example["tokens"])
            ids[row, :n] = torch.tensor(example["tokens"])
            mask[row, :n] = 1
            labels[row, :n] = torch.where(torch.tensor(example["learnt"]), ids[row, :n], -100)
        for group in adam.param_groups:
            group["lr"] = step["rate"]
        logits = net(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        results.append(
            {"loss": loss.item(), "tokens": int(mask.sum()), "seconds": time.perf_counter() - begun}
        )
        print(f"PyTorch step {step['step']}: {results[-1]}", file=sys.stderr, flush=True)
    (folder / "theirs.json").write_text(json.dumps(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shishin", default=str(ROOT / "target/release/shishin"))
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    args.model = args.model.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "none.toml").write_text("")
        dataset(folder / "train.jsonl", 4 * args.steps)
        path = settings(args, folder, "stored")
        measured([args.shishin, "--config", str(folder / "none.toml"), "tune", "--run", str(path), "--dump", str(folder / "dump")])
        runs = {"shishin, stored": ours(args, folder, "stored"), "shishin, f32": ours(args, folder, "f32")}
        runs["PyTorch + PEFT"] = theirs(args, folder)
    speed = {name: statistics.median(speeds[3:]) for name, (_, speeds, _) in runs.items()}
    reference, _, peak = runs["PyTorch + PEFT"]
    print(f"{'':18} {'tok/s':>8} {'ratio':>6} {'peak MB':>9} {'ratio':>6} {'loss, worst':>12} {'mean':>8}")
    for name, (losses, _, own) in runs.items():
        apart = [abs(a - b) / b for a, b in zip(losses, reference)]
        print(
            f"{name:18} {speed[name]:8.0f} {speed[name] / speed['PyTorch + PEFT']:6.2f} {own:9.0f} {own / peak:6.2f}"
            f" {max(apart):11.2%} {statistics.mean(apart):7.2%}"
        )


if __name__ == "__main__":
    main()
