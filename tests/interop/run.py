#!/usr/bin/env python3
"""Trains a small adapter and holds it against Hugging Face PEFT and llama.cpp.

    python3 tests/interop/run.py --model FILE.gguf [--begins question|answer] [--shishin target/release/shishin] [--llama FOLDER]

Needs torch, transformers, peft and gguf. Run it from the root of the repository. It prints

* the mean loss of the trained adapter on its examples, by shishin and by PEFT, both on the file's weights as 32-bit floats, and how far
  the logarithm of a token's probability is apart at the most;
* greedy answers by shishin, by PEFT and, where the folder of its programs is given (llama-completion, llama-quantize), by llama.cpp with the
  GGUF form of the adapter, on the same floats.

With --begins the adapter begins at the question or at the answer (PEFT's activated LoRA), which llama.cpp's completion program cannot do.
It ends with 1 when any of those is more than 1e-3 apart, or PEFT or llama.cpp answers otherwise.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENS = 32
EXAMPLES = [
    ("How long should I wait before bathing after the operation?", "Two days, then a short shower is fine."),
    ("When do I take the blue tablet?", "In the morning, with a glass of water."),
    ("Can I eat before the scan?", "No food for six hours before it."),
    ("Who changes my dressing?", "The nurse on the day ward does that."),
    ("What if I miss a dose?", "Take the next one at its usual hour."),
    ("May my son visit?", "Yes, from two until eight."),
    ("Is the itch normal?", "Often, as the wound closes."),
    ("Where do I hand in the form?", "At the desk by the lift."),
    ("Can I drive?", "Not for a day after the sedation."),
    ("How do I sleep with the drain?", "On the other side, with a pillow."),
]
QUESTIONS = ["When do I take the blue tablet?", "Can I drive after the scan?", "Who takes the drain out?"]


def settings(args, folder, name, more=""):
    data = json.dumps(str(folder / "data.jsonl"))
    path = folder / f"{name}.toml"
    path.write_text(
        f"""
objective = "Answer briefly."
base = {json.dumps(str(args.model))}
output = {json.dumps(str(folder / name))}
[data]
train = [{data}]
valid = [{data}]
[lora]
rank = 8
alpha = 16.0
begins = {json.dumps(args.begins)}
{more}
[training]
epochs = 8
batch = 10
learning_rate = 1e-3
evaluate_every = 8
weights = "f32"
"""
    )
    return str(path)


def prepare(args, folder):
    lines = [
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]})
        for q, a in EXAMPLES
    ]
    (folder / "data.jsonl").write_text("\n".join(lines))
    tune = [args.shishin, "tune", "--run"]
    run = settings(args, folder, "adapter")
    subprocess.run([*tune, run, "--gguf"], check=True, stdout=subprocess.DEVNULL)
    # What it says of each token is what a run that goes on from it has before its first step.
    run = settings(args, folder, "on", f"from = {json.dumps(str(folder / 'adapter'))}")
    subprocess.run([*tune, run, "--dump", str(folder / "dump")], check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "adapter/run/metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["valid"]


def shishin_answer(args, folder, question):
    environment = dict(os.environ, SHISHIN_MODEL_WEIGHTS="f32", SHISHIN_SAMPLING_REPETITION_PENALTY="1")
    command = [args.shishin, "ask", "--model", str(args.model), "--mode", "tuned", "--adapter", "a", "--json"]
    command += ["--load-adapter", f"a={folder / 'adapter'}", "--temperature", "0", "--max-tokens", str(TOKENS), question]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(run.stderr)
    events = [json.loads(line) for line in run.stdout.splitlines()]
    return "".join(event["data"]["text"] for event in events if event["event"] == "token").strip()


def llama_answer(args, folder, prompt):
    floats = folder / "floats.gguf"
    if not floats.exists():
        command = [args.llama / "llama-quantize", "--allow-requantize", args.model, floats, "F32"]
        subprocess.run(command, check=True, capture_output=True)
    command = [args.llama / "llama-completion", "-m", floats, "--lora", folder / "adapter/adapter.gguf", "-p", prompt]
    command += ["-n", str(TOKENS), "--temp", "0", "-no-cnv", "--no-display-prompt", "-t", "2"]
    command += ["--cache-type-k", "f32", "--cache-type-v", "f32"]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return run.stdout.replace("[end of text]", "").strip() or run.stderr[-300:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--shishin", default=str(ROOT / "target/release/shishin"))
    parser.add_argument("--llama", type=pathlib.Path)
    parser.add_argument("--begins", default="prompt", choices=["prompt", "question", "answer"])
    args = parser.parse_args()
    args.model = args.model.resolve()
    if args.llama:
        if args.begins != "prompt":
            parser.error("llama.cpp's program takes adapters that begin at the prompt alone: leave --llama or --begins out")
        args.llama = args.llama.resolve()

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        reported = prepare(args, folder)
        base = AutoModelForCausalLM.from_pretrained(
            args.model.parent, gguf_file=args.model.name, dtype=torch.float32
        )
        net = PeftModel.from_pretrained(base, folder / "adapter").eval()
        tokenizer = AutoTokenizer.from_pretrained(args.model.parent, gguf_file=args.model.name)
        total, count, worst = 0.0, 0, 0.0
        step = json.loads((folder / "dump/steps.jsonl").open().readline())
        for example in step["examples"]:
            ids = torch.tensor([example["tokens"]])
            with torch.no_grad():
                log_p = net(input_ids=ids).logits[0, :-1].log_softmax(-1)
            own = [-log_p[i, t].item() for i, t in enumerate(example["tokens"][1:]) if example["learnt"][i + 1]]
            total, count = total + sum(own), count + len(own)
            worst = max([worst, *(abs(a - b) for a, b in zip(own, example["losses"], strict=True))])
        theirs = total / count
        print(f"loss: shishin {reported:.6f}, PEFT {theirs:.6f}, apart {abs(reported - theirs):.2e}, by token at most {worst:.2e}")
        failed = abs(reported - theirs) > 1e-3 or worst > 1e-3

        system = (ROOT / "config/prompts/plain.en.jinja").read_text().strip()
        for question in QUESTIONS:
            prompt = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
            with torch.no_grad():
                end = tokenizer.convert_tokens_to_ids("<|im_end|>")
                out = net.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False, eos_token_id=end)
            peft = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
            answers = {"shishin": shishin_answer(args, folder, question), "PEFT": peft}
            if args.llama:
                answers["llama.cpp"] = llama_answer(args, folder, prompt)
            print(question)
            for program, answer in answers.items():
                print(f"  {program:10} {answer}")
            failed |= len(set(answers.values())) > 1
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
