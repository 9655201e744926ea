"""Time a language model as the decoder beside transformers and peft: saying, serving, learning, and the first token.

All on the packaged SmolLM2-135M-Instruct in float32, one thread, but for the server, which has a process of its own on
all cores, as its clients have. Ratios are of medians over repeats that alternate between the two ways.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import http.client
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import polymodal as pm
from polymodal.asking import prompts
from polymodal.nn.language.decode import Decoding, say
from polymodal.nn.language.loading import load_language
from polymodal.nn.language.losses import answer_loss
from polymodal.nn.language.memory import Memory
from polymodal.nn.language.talk import Talk
from polymodal.nn.lowrank import add_low_rank
from polymodal.types import Masked

QUESTION = "Tell me the story of a fox who finds an old bridge over a green river, and of what the fox does there."
TOKENS, CLIENTS, PORT = 48, 8, 8765


def main(arguments: Sequence[str] | None = None) -> int:
    """Time all of it, and print the ratios; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every number to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {"saying": saying(options.repeats), "learning": learning(options.repeats)}
    with tempfile.TemporaryDirectory() as folder:
        bundle = made(Path(folder))
        found["first token"] = first_token(bundle, options.repeats)
        found["serving"] = serving(bundle, found["saying"]["transformers"])
    goals = {
        "saying": (found["saying"]["ratio"], ">=", 0.95),
        "serving": (found["serving"]["ratio"], ">=", 3.0),
        "learning": (found["learning"]["ratio"], "<=", 1.05),
        "first token": (found["first token"]["ratio"], "<=", 1.1),
    }
    met = {name: x >= goal if way == ">=" else x <= goal for name, (x, way, goal) in goals.items()}
    for name, (x, way, goal) in goals.items():
        shown = "  ".join(f"{key} {value:.3g}" for key, value in found[name].items() if key != "ratio")
        print(f"{name:<12} {shown}  ratio {x:.2f} (goal {way} {goal}{'' if met[name] else ', missed'})")
    if options.json:
        options.json.write_text(json.dumps(found), encoding="utf-8")
    return int(not all(met.values()))


def asked(text: str = QUESTION) -> Masked:
    """A prompt as embeddings, in the chat template."""
    language = load_language("smollm2")
    before, after = language.vocabulary.around(None, True)
    ids = torch.tensor([[*before, *language.vocabulary.ids(text), *after]])
    return Masked(language.embed(ids), torch.ones_like(ids, dtype=torch.bool))


def saying(repeats: int) -> dict[str, float]:
    """Tokens a second of one answer."""
    language, prompt = load_language("smollm2"), asked()

    def theirs() -> int:
        with torch.inference_mode():
            ids = language.net.generate(
                inputs_embeds=prompt.values, attention_mask=prompt.mask.long(), max_new_tokens=TOKENS, do_sample=False
            )
        return ids.shape[1]

    ways = {"polymodal": lambda: len(say(language, prompt, Decoding(tokens=TOKENS))[0].ids), "transformers": theirs}
    seconds, counts = alternate(ways, repeats)
    rate = {way: counts[way] / seconds[way] for way in ways}
    return rate | {"ratio": rate["polymodal"] / rate["transformers"]}


def learning(repeats: int) -> dict[str, float]:
    """Seconds of a step on 4 rows of 128 tokens, of which the last 64 are learned, by low-rank changes."""
    import peft

    language = load_language("smollm2")
    torch.manual_seed(0)
    ids = torch.randint(100, 40_000, (4, 128))
    ours, theirs = language.private(), language.private()
    changes = add_low_rank(ours.net, 8, 16.0, seed=0)
    names = "|".join(name.replace(".", r"\.") for name in changes)
    adapted = peft.inject_adapter_in_model(
        peft.LoraConfig(r=8, lora_alpha=16, target_modules=rf"({names})", lora_dropout=0.0), theirs.net
    )

    def own() -> int:
        x = Masked(ours.embed(ids[:, :64]), torch.ones(4, 64, dtype=torch.bool))
        return step(answer_loss(ours, x, list(ids[:, 64:])).sum(), ours.net)

    def plain() -> int:
        labels = ids.masked_fill(torch.arange(128) < 64, -100)
        return step(adapted(input_ids=ids, labels=labels).loss, adapted)

    seconds, _ = alternate({"polymodal": own, "peft": plain}, repeats)
    return seconds | {"ratio": seconds["polymodal"] / seconds["peft"]}


def step(loss: torch.Tensor, net: Any) -> int:
    """Gradient and a plain step."""
    loss.backward()
    with torch.no_grad():
        for p in net.parameters():
            if p.grad is not None:
                p -= 1e-6 * p.grad
                p.grad = None
    return 1


def made(folder: Path) -> pm.Bundle:
    """A bundle that has learned nothing: a picture and a question."""
    rows = [{"image": _picture(i), "question": QUESTION, "answer": "It does."} for i in range(8)]
    spec = {
        "inputs": {"image": {"type": "image", "grid": 4}, "question": "prompt"},
        "outputs": {"answer": {"type": "generate", "decoder": {"adapt": "none"}, "decoding": {"tokens": TOKENS}}},
        "training": {"epochs": 1, "refit": 0},
    }
    model = pm.fit(spec, rows, cache=False)
    model.save(folder / "fox")
    return pm.load(folder / "fox")


def _picture(seed: int) -> bytes:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    sink = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def first_token(bundle: pm.Bundle, repeats: int) -> dict[str, float]:
    """Seconds to the first token of a new question: about a picture that was asked about before, or about none.

    And both where nothing is remembered. The picture's tokens are there in any case.
    """
    part, head = bundle.spec.inputs["question"], bundle.model.decoders["answer"]
    image = bundle.embedder.embed("image", bundle.spec.inputs["image"].collate([_read(bundle)]))
    numbers = itertools.count()

    def first(given: Mapping[str, Masked], memory: Memory) -> int:
        inputs = {**given, "question": part.collate([f"{next(numbers)}. {QUESTION}"])}
        talk = Talk(head.language, 1, memory)
        talk.start(prompts(bundle.model, "answer", inputs).values[0], Decoding(tokens=1))
        return len(talk.step())

    seen, text, nothing = {"image": image}, dict[str, Masked](), Memory(0)
    lasting = {"with a picture": (seen, Memory()), "text": (text, Memory())}
    new = {"with a new picture": (seen, nothing), "new text": (text, nothing)}
    ways = {name: partial(first, *way) for name, way in (lasting | new).items()}
    seconds, _ = alternate(ways, repeats * 5)
    return seconds | {"ratio": seconds["with a picture"] / seconds["text"]}


def _read(bundle: pm.Bundle) -> Any:
    return bundle.spec.inputs["image"].read(_picture(1)).value


def serving(bundle: pm.Bundle, alone: float) -> dict[str, float]:
    """Tokens a second of eight streams at once, over one answer of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        place = bundle.save(Path(folder) / "fox")
        more = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        command = [sys.executable, "-m", "polymodal.cli", "serve", str(place), "--port", str(PORT), "--deadline", "300"]
        process = subprocess.Popen(command, env=more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _until_ready(process)
            _stream()
            started, counts = time.perf_counter(), list[int]()
            threads = [threading.Thread(target=lambda: counts.append(_stream())) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rate = sum(counts) / (time.perf_counter() - started)
        finally:
            process.terminate()
            process.wait(60)
    return {"8 streams": rate, "transformers": alone, "ratio": rate / alone}


def _until_ready(process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        if process.poll() is not None:
            raise SystemExit("The server did not start.")
        time.sleep(0.1)


def _stream() -> int:
    """Tokens of one streamed answer."""
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=300)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    lines = connection.getresponse().read().decode().split("\n\n")
    return json.loads(lines[-3].removeprefix("data: "))["usage"]["completion_tokens"]


def alternate(ways: dict[str, Callable[[], int]], repeats: int) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds of each way, after a round that does not count; and what it gave."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    counts: dict[str, int] = {}
    for turn in range(repeats + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            counts[way] = run()
            if turn:
                seconds[way].append(time.perf_counter() - start)
    return {way: statistics.median(some) for way, some in seconds.items()}, counts


if __name__ == "__main__":
    sys.exit(main())
