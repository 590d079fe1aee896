"""Make every file of weights that ships with the worlds `flow/digits` and `flow/ring2d`, and print what was measured.

    python scripts/pretrain_flow/pretrain.py                      # all, about 10 minutes on one core
    python scripts/pretrain_flow/pretrain.py --parts mlp cls gold # some of them, on top of what the folder holds

Digits come with scikit-learn; same seed, machine, thread count and versions give the same bits. Numbers are measured on
the weights as they are shipped (rounded to float16).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import evaluators
import generators
import numpy as np
import ring
import torch

from concordant.policies.networks import load_network, load_weights, save_network, save_weights
from concordant.worlds.flow_digits import data, rewards, sets
from concordant.worlds.flow_digits.evaluators import MODELS
from concordant.worlds.flow_digits.prompts import ClassReader, CodeReader

WORLDS = Path(__file__).parents[2] / "src/concordant/worlds"
DIGITS, RING = WORLDS / "flow_digits/base", WORLDS / "flow_ring2d/base"
SEEDS = {"cls": 10, "gold": 11, "attributes": 12, "quality": 20, "pairwise": 21, "shuffled": 22, "ring": 30}
JUDGED, FRESH = 100, 200
"""Seeds of the images that quality models are fitted on, and of those they are measured on."""


def load(name: str) -> torch.nn.Module:
    """Load an evaluator as it was saved."""
    return load_weights(MODELS[name](), DIGITS, name)


def keep(
    name: str, module: torch.nn.Module, seconds: float, facts: Callable[[torch.nn.Module], dict]
) -> None:
    """Save an evaluator, then measure and note what the rounded weights do."""
    save_weights(module, DIGITS, name)
    found = facts(load(name))
    save_weights(module, DIGITS, name, facts=found)
    show(name, module, seconds, found)


def show(name: str, module: torch.nn.Module, seconds: float, facts: dict) -> None:
    size = sum(p.numel() for p in module.parameters())
    numbers = ", ".join(f"{key} {value}" for key, value in facts.items())
    print(f"{name:<10} {size:>9,} weights  {seconds:4.0f} s  {numbers}", flush=True)


@torch.no_grad()
def known(module: torch.nn.Module, half: str) -> float:
    """Accuracy on a half."""
    digits = data.half(half)
    guess = module(evaluators.images_of(digits)).argmax(1)
    return round(float((guess == evaluators.labels_of(digits)).float().mean()), 4)


@torch.no_grad()
def attribute_facts(module: torch.nn.Module) -> dict[str, float]:
    """Errors on varied digits of half b."""
    half = data.half("b")
    images = data.varied(half.images, np.random.default_rng(FRESH))
    found = module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    thickness, slant = np.abs(found[:, 10:] - data.attributes(images)).mean(0)
    accuracy = np.mean(found[:, :10].argmax(1) == half.labels)
    numbers = {"accuracy_b": accuracy, "thickness_error": thickness, "slant_error": slant}
    return {name: round(float(value), 4) for name, value in numbers.items()}


def fit_evaluators(parts: set[str]) -> None:
    """Fit the classifiers and the regressor."""
    made = {
        "cls": (
            evaluators.fit_classifier,
            lambda m: {"accuracy_a": known(m, "a"), "accuracy_b": known(m, "b")},
        ),
        "gold": (evaluators.fit_gold, lambda m: {"accuracy_a": known(m, "a"), "accuracy_b": known(m, "b")}),
        "attributes": (evaluators.fit_attributes, attribute_facts),
    }
    for name, (fit, facts) in made.items():
        if name in parts:
            began = time.perf_counter()
            keep(name, fit(SEEDS[name]), time.perf_counter() - began, facts)


def fit_generators(parts: set[str]) -> dict[str, float]:
    """Fit the bases; return the seconds that each took."""
    took = {}
    for name, plan in generators.FITS.items():
        if name in parts:
            network, took[name] = generators.fit(name)
            save_network(network, DIGITS, name, **plan.facts)
    return took


def measure_generators(took: dict[str, float]) -> None:
    """Measure all bases that are there by the evaluators that are there, and note it."""
    for name, plan in generators.FITS.items():
        if (DIGITS / f"{name}.safetensors").exists():
            found = base_facts(name)
            network = load_network(DIGITS, name, reader_of(name))
            save_network(network, DIGITS, name, **plan.facts, facts=found)
            show(name, network, took.get(name, 0.0), found)


def reader_of(name: str) -> ClassReader | CodeReader:
    return CodeReader() if name == "ddim" else ClassReader()


@torch.no_grad()
def base_facts(name: str, count: int = 1000) -> dict[str, float]:
    """Measure a base on samples of all classes: by 40 ODE steps, or 20 of DDIM."""
    network = load_network(DIGITS, name, reader_of(name))
    labels, generator = torch.arange(count) % data.CLASSES, torch.Generator().manual_seed(FRESH)
    codes = generators.class_codes(labels)
    if name == "ddim":
        codes = torch.cat([codes, 3.0 * torch.rand(count, 2, generator=generator) - 1.5], 1)
    pixels = network.decode(generators.draw(network, codes, FRESH, 20 if name == "ddim" else 40))
    images = pixels.permute(0, 3, 1, 2).contiguous()
    numbers = {f"accuracy_{n}": (load(n)(images).argmax(1) == labels).float().mean() for n in ("cls", "gold")}
    if name == "ddim":
        gap = torch.from_numpy(data.attributes(pixels.numpy())) - codes[:, 10:]
        numbers |= {"thickness_error": gap[:, 0].abs().nanmean(), "slant_error": gap[:, 1].abs().nanmean()}
        seen = load("attributes")(images)
        sure = seen[:, :10].softmax(1).gather(1, labels[:, None])[:, 0]
        numbers["attributes"] = -rewards.distance(sure, seen[:, 10:] - codes[:, 10:]).mean()
    found = sets.measure(images, labels, varied=name == "ddim")
    numbers |= {key: np.mean(value) for key, value in found.items()}
    return {key: round(float(value), 4) for key, value in numbers.items()}


def fit_quality(parts: set[str]) -> None:
    """Fit the quality models on one budget of judgements of what the base `mlp` draws."""
    if not parts & {"quality", "pairwise", "shuffled"}:
        return
    base, gold = load_network(DIGITS, "mlp", ClassReader()), load("gold")
    judged = evaluators.judge(base, gold, evaluators.LABELS, JUDGED)
    fresh = evaluators.judge(base, gold, 4000, FRESH)
    if "quality" in parts:
        began = time.perf_counter()
        module = evaluators.fit_quality(judged, SEEDS["quality"])
        keep("quality", module, time.perf_counter() - began, lambda m: evaluators.quality_facts(m, fresh))
    for name in ("pairwise", "shuffled"):
        if name in parts:
            began = time.perf_counter()
            module = evaluators.fit_pairwise(judged, SEEDS[name], shuffle=name == "shuffled")
            keep(name, module, time.perf_counter() - began, lambda m: evaluators.pair_facts(m, fresh))


def calibrate() -> None:
    """Print what the set metrics say about real digits: half b against half a, as they are and varied."""
    half = data.half("b")
    other = half._replace(images=data.varied(half.images, np.random.default_rng(FRESH)))
    for title, digits, varied in (("real", half, False), ("varied", other, True)):
        found = sets.measure(evaluators.images_of(digits), evaluators.labels_of(digits), varied=varied)
        numbers = {key: round(float(np.mean(value)), 4) for key, value in found.items()}
        print(f"{title} digits, half b against half a: {json.dumps(numbers)}")


def main() -> None:
    """Fit, save, measure."""
    names = (*SEEDS, *generators.FITS)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parts = set(parser.parse_args().parts)
    torch.set_num_threads(1)
    fit_evaluators(parts)
    measure_generators(fit_generators(parts))
    fit_quality(parts)
    if "ring" in parts:
        began = time.perf_counter()
        network, facts = ring.make(RING, SEEDS["ring"])
        show("ring", network, time.perf_counter() - began, facts)
    calibrate()
    files = [*DIGITS.glob("*"), *RING.glob("*")]
    print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
