"""bench/gpu.md from results: the GPU, the table of figures, the phases of a step. What people wrote below stays.

A row is of the newest call that measured both it and its peer; without one, of the newest calls of each, and says so.
"""
import pathlib

# What follows this line in the file is written by people.
BY_HAND = "## Correctness"
# What launches are for, by how their names begin; the first that fits counts.
PHASES = {
    "matrix products": ("products\0",),
    "narrow products": ("products, narrow\0", "narrow", "lora"),
    "attention": ("tile", "attend"),
    "quantizing": ("to_fp8", "from_fp8", "transpose_codes", "turn_codes", "nf4", "nested", "int8"),
    "loss": ("cross_entropy", "add_losses"),
    "optimizer": ("adamw", "squares", "scale_flat"),
    "elementwise": ("",),
}
FORMS = ["bf16", "fp16", "fp8", "nf4", "int8"]
INTRODUCTION = """\
# Training on a GPU

LoRA (rank 8, alpha 32, dropout 0.1, `query_key_value`) on a random base of rinna-3.6b's exact shape, {records}, cut at 512
ids, in a seeded order. Figures count only within one call on one GPU. `tools/bench-gpu` writes all down to "Correctness"; speeds are of
the first 48 steps after a warm-up, ours as the peers'.
"""


class Results:
    def __init__(self, lines: list[dict]):
        self.good = [line for line in lines if line["figures"]]
        self.all = lines

    def newest(self, part: str, wanted=lambda figures: True) -> dict | None:
        found = [line for line in self.good if line["part"] == part and wanted(line["figures"])]
        return found[-1] if found else None

    def pair(self, part: str, peer: str) -> tuple[dict | None, dict | None, str]:
        calls = {line["call"] for line in self.good if line["part"] == part}
        shared = [line for line in self.good if line["part"] == peer and line["call"] in calls]
        if not shared:
            ours, theirs = self.newest(part), self.newest(peer)
            return ours, theirs, " (in another call)" if ours and theirs else ""
        theirs = shared[-1]
        ours = [line for line in self.good if line["part"] == part and line["call"] == theirs["call"]][-1]
        return ours, theirs, ""

    def why_not(self, part: str) -> str:
        tried = [line["why"] for line in self.all if line["part"] == part and line["why"]]
        return f"not measured: it {tried[-1]}" if tried else "not measured"


def rate(figures: dict) -> str:
    return f"{figures['samples_per_s']:.1f} samples/s, {figures['tokens_per_s']:,.0f} tokens/s"


def ratio(results: Results, what: str, part: str, peer: str, bar: str) -> list[str]:
    ours, theirs, note = results.pair(part, peer)
    name = peer.removeprefix("peer:")
    times = results.why_not(part if not ours else peer)
    told = rate(ours["figures"]) if ours else "-"
    if ours and theirs:
        samples, tokens = (ours["figures"][unit] / theirs["figures"][unit] for unit in ("samples_per_s", "tokens_per_s"))
        times = f"{samples:.2f}x{note}"
        # Steps of other records, as a peer's are, have other lengths.
        told += f"; by tokens {tokens:.2f}x"
    return [what, name if peer.startswith("peer:") else f"our {name}", times, bar, told, rate(theirs["figures"]) if theirs else "-"]


def alone(results: Results) -> list[str]:
    what, bar = "the same: this step's matrix products alone, in the same call, over its time", "70%"
    ours = results.newest("bf16")
    if not ours:
        return [what, "-", "not measured", bar, "-", "-"]
    step = ours["figures"]["step"]
    return [what, "-", f"{step['products_alone_ms'] / step['ms']:.0%}", bar,
            f"{step['products_alone_ms']:.1f} of {step['ms']:.1f} ms, {step['products_alone']} products, {step['tokens']:,} tokens", "-"]


def epoch(results: Results) -> list[list[str]]:
    ours = results.newest("bf16", lambda figures: figures["is_epoch"])
    peer = results.newest("peer:bf16-compiled")
    theirs = f"{peer['figures']['epoch_s']:.0f} s (from its speed)" if peer else "-"
    whole = ["the whole epoch, bf16", "bf16-compiled", "not measured", "70 s", "-", theirs]
    even = ["ms per 1,000 tokens over the epoch, bf16: slowest tenth over median", "-", "not measured", "1.10x", "-", "-"]
    if ours:
        figures, spread = ours["figures"], ours["figures"]["ms_per_1000_tokens"]
        whole[2] = f"{figures['seconds']:.1f} s"
        whole[4] = f"{figures['steps']} steps, {figures['samples_per_s_all']:.1f} samples/s, {figures['tokens_per_s_all']:,.0f} tokens/s"
        even[2] = f"{spread['slowest_tenth_mean'] / spread['median']:.2f}x"
        even[4] = (f"the tenth begins at {spread['slowest_tenth_from']:.2f}, its mean is {spread['slowest_tenth_mean']:.2f}, "
                   f"the median {spread['median']:.2f}")
    return [whole, even]


def peak(results: Results) -> list[str]:
    ours, theirs, note = results.pair("nf4", "peer:nf4-512")
    gib = [f"{line['figures']['peak_gib']:.1f} GiB" if line else "-" for line in (ours, theirs)]
    return ["NF4: peak memory, cut-off 512", "nf4-512", gib[0] + note if ours else "not measured", "12 GiB", gib[0], gib[1]]


def load(results: Results) -> list[list[str]]:
    """A row for each form that was loaded."""
    found = results.newest("load")
    if not found:
        return []
    copy = found["figures"]["copy"]
    return [[f"loading a folder as {form}", "a plain pinned copy", f"{told['seconds']:.2f} s, {told['gb_per_s'] / copy:.0%}", bar,
             f"{told['gb_per_s']:.1f} GB/s", f"{copy:.1f} GB/s"]
            for form, told in found["figures"]["forms"].items() for bar in ["80%" if form == "bf16" else "-"]]


def rows(results: Results) -> list[list[str]]:
    whole, even = epoch(results)
    return [
        ratio(results, "bf16, 32 records a step, cut-off 512", "bf16", "peer:bf16-compiled", "1.3x"),
        ratio(results, "the same", "bf16", "peer:bf16-layers", "-"),
        ratio(results, "the same", "bf16", "peer:bf16-grouped", "-"),
        alone(results),
        whole,
        ratio(results, "fp8, 32 records a step, cut-off 512", "fp8", "bf16", "1.15x"),
        ratio(results, "NF4, 16 x 2, cut-off 512", "nf4", "peer:nf4-512", "4x"),
        peak(results),
        ratio(results, "int8, 4 x 4, cut-off 512", "int8", "peer:int8-512", "8x"),
        even,
        *load(results),
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def about(results: Results) -> str:
    """GPUs and versions, with the parts that ran on each in a call."""
    calls: dict[int, list[dict]] = {}
    for line in results.good:
        calls.setdefault(line["call"], []).append(line)
    text = ""
    for number, lines in enumerate(calls.values(), 1):
        first = lines[0]
        parts = " ".join(dict.fromkeys(line["part"] for line in lines))
        versions = next((line["figures"]["versions"] for line in reversed(lines) if "versions" in line["figures"]), {})
        text += (f"* Call {number}: {first['card']}, driver {first['driver']}, CUDA {first['cuda']}: `tools/bench-gpu {parts}`"
                 + "".join(f", {name} {version}" for name, version in versions.items()) + "\n")
    return text


def phases(step: dict) -> dict[str, float]:
    """Milliseconds by phase, and what the step takes beyond their sum."""
    sums = dict.fromkeys(PHASES, 0.0)
    for name, (_, took) in step["launches"].items():
        sums[next(phase for phase, begins in PHASES.items() if f"{name}\0".startswith(begins))] += took
    return {**sums, "idle": max(step["ms"] - sum(sums.values()), 0.0)}


def steps(results: Results) -> str:
    found = [(form, line["figures"]["step"]) for form in FORMS if (line := results.newest(form))]
    rows = [[form, f"{step['tokens']:,}", f"{step['ms']:.1f}", *(f"{took:.1f}" for took in phases(step).values())] for form, step in found]
    return table(["form", "tokens", "step", *PHASES, "idle"], rows)


def memory(results: Results) -> str:
    found = [(form, line["figures"]) for form in FORMS if (line := results.newest(form, lambda figures: "plan_gib" in figures))]
    rows = [[form, f"{figures['plan_gib']:.2f}", f"{figures['peak_gib']:.2f}", f"{figures['plan_gib'] / figures['peak_gib'] - 1:+.1%}"]
            for form, figures in found]
    return table(["form", "planned", "measured", "planned over measured"], rows)


def write(path: pathlib.Path, lines: list[dict]) -> None:
    results = Results(lines)
    by_hand = path.read_text().partition(BY_HAND)[2] if path.exists() else "\n"
    random = any("peer:" not in line["part"] and line["part"] != "load" and not line.get("dolly", True) for line in results.good)
    records = "random records as long as Dolly-ja's" if random else "all of Dolly-ja"
    path.write_text(
        INTRODUCTION.format(records=records)
        + "\n## Figures\n\n" + about(results)
        + "\n" + table(["what", "peer", "ratio or value", "bar", "ours", "peer's figure"], rows(results))
        + "\n## A step, in ms\n\nOne step of median length. Each launch alone, as the profiler times it; idle is what the step takes beyond"
        + " their sum. Narrow products are those of rank 8.\n\n" + steps(results)
        + "\n## Memory, in GiB\n\nThe peak of GPU memory in the epoch's longest steps, and the plan's figure at submission.\n\n"
        + memory(results)
        + "\n" + BY_HAND + by_hand)
