"""The table of `tools/bench-serving`: from the figures of the newest calls to rows with bars and peers."""
import pathlib

BEGIN = "<!-- Written by tools/bench-serving. -->\n"
END = "<!-- Here it ends. -->\n"


class Call:
    """The figures of one precision in its newest call, and the peers' of the same call where they ran in it."""

    def __init__(self, lines: list[dict], precision: str):
        ours = [line for line in lines if line["part"] == precision and line["figures"]]
        self.call = ours[-1]["call"] if ours else None
        self.is_cpu = bool(ours) and ours[-1]["device"] == "cpu"
        # A part that was measured again in the call replaces the earlier one.
        self.figures = {key(figures): figures for line in ours if line["call"] == self.call for figures in line["figures"]}
        peers = [line for line in lines if line["part"] == "peer" and line["figures"]]
        same = [line for line in peers if line["call"] == self.call]
        self.note = "" if same or not peers else " (in another call)"
        self.peers = {figures["mode"]: figures for line in (same or peers[-1:]) for figures in line["figures"]}

    def speed(self, sequences: int, adapters: int) -> float | None:
        figures = self.figures.get(("together", sequences, adapters))
        return figures and figures["tokens_per_s"]

    def peer(self, mode: str) -> float | None:
        return self.peers.get(mode, {}).get("tokens_per_s")


def key(figures: dict) -> tuple:
    return (figures["part"], figures.get("sequences"), figures.get("adapters")) if figures["part"] == "together" else (figures["part"],)


def rate(value: float | None) -> str:
    return f"{value:,.0f} tokens/s" if value else "-"


def ratio(what: str, ours: float | None, theirs: float | None, beside: str, bar: str, goal: str, note: str = "") -> list[str]:
    times = f"{ours / theirs:.2f}x{note}" if ours and theirs else "not measured"
    return [what, rate(ours), f"{beside}: {rate(theirs)}", times, bar, goal]


def ms(spread: dict, which: str) -> str:
    # NaN and null where there was nothing to count.
    value = spread.get(f"{which}_ms")
    return f"{value:,.1f} ms" if value is not None and value == value else "-"


def rows(lines: list[dict], precision: str) -> list[list[str]]:
    """Rows with their bars; those of a GPU's figures do not hold for the CPU."""
    main = Call(lines, precision)
    speed, figures = main.speed, main.figures
    found = [
        ratio("one sequence, one adapter", speed(1, 1), main.peer("static1"), "`static1`", "2.0x", "2.8x", main.note),
        ratio("32 at once over 4 adapters", speed(32, 4), main.peer("static32"), "`static32`, one adapter", "1.6x", "2.5x", main.note),
        ratio("128 at once over 32 adapters", speed(128, 32), speed(32, 4), "32 over 4", "1.5x", "1.8x"),
        ratio("64 at once over 64 adapters", speed(64, 64), speed(32, 4), "32 over 4", "-", "-"),
        ratio("32 at once over 32 adapters", speed(32, 32), speed(32, 1), "over one", "0.93x", "0.97x"),
        ratio("32 at once over one adapter", speed(32, 1), speed(32, 0), "the base alone", "0.95x", "0.98x"),
        ratio("one sequence, one adapter", speed(1, 1), speed(1, 0), "the base alone", "0.95x", "0.98x"),
        ratio("8 at once over 4 adapters", speed(8, 4), speed(1, 1), "one sequence", *(("2.0x", "2.5x") if main.is_cpu else ("-", "-"))),
    ]
    for form, bar, goal in [("nf4", "1.5x", "2.2x"), ("int8", "1.3x", "1.7x"), ("fp8", "1.3x", "1.6x")]:
        other = Call(lines, form)
        note = "" if other.call == main.call else " (in another call)"
        found.append(ratio(f"one sequence in {form}, one adapter", other.speed(1, 1), speed(1, 1), precision, bar, goal, note))
    found = [row for row in found if row[1] != "-"]
    if main.is_cpu:
        found = [row if row[0].startswith("8 at once") else [*row[:4], "-", "-"] for row in found if row[3] != "not measured"]
    if told := figures.get(("first-token",)):
        first = told["to_first_token"]
        found.append([f"first token of {told['prompt']} ids, idle", ms(first, "p50"), f"p99 {ms(first, 'p99')}", "-", "12 ms", "8 ms"])
    if told := figures.get(("swaps",)):
        quiet, loaded = told["quiet"], told["loaded"]
        what = (f"between tokens of {told['sequences']} sequences, p99, with {told['promotions_per_s']:g} promotions and "
                f"{told['long_prompts_per_s']:g} prompts of {told['long_prompt']} ids a second")
        found.append([what, ms(loaded, "p99"), f"quiet p50 {ms(quiet, 'p50')}, p99 {ms(quiet, 'p99')}",
                      f"{told['loaded_p99_over_quiet_p50'] or 0:.2f}x", "3x", "1.5x"])
        first, returned = told["first_answer_from_call"], told["first_answer_from_return"]
        found.append([f"promoted to first answer, under that load, {first['count']} times, {told['missed']} missed",
                      f"p50 {ms(first, 'p50')}, p99 {ms(first, 'p99')}", f"after the call's return p50 {ms(returned, 'p50')}", "-", "0.5 s", "0.1 s"])
    if told := figures.get(("churn",)):
        grown = [f"{told[name]:+.1f} MiB {where}" for name, where in [("resident_grown_mib", "resident"), ("device_grown_mib", "on the GPU")]
                 if told[name] is not None]
        found.append([f"{told['sequences']:,} sequences, random ends, {told['cancelled']} cancelled", f"{told['pages_lost']:.0f} pages lost",
                      ", ".join(grown) or "-", f"{told['others_answers']} got another's answer", "0, 0", "0, 0"])
    if told := figures.get(("mixed",)):
        first, between = told["to_first_token"], told["between_tokens"]
        load = f"{told['at_once']} under way" if told["at_once"] else f"{told['rate_per_s']:g} a second"
        found.append([f"mixed: {told['requests']:,} requests over {told['adapters']} adapters, {load}, {told['refused']} refused",
                      rate(told["tokens_per_s"]), f"first token p50 {ms(first, 'p50')}, p99 {ms(first, 'p99')}; between tokens p50 "
                      f"{ms(between, 'p50')}, p99 {ms(between, 'p99')}", f"{told['requests_per_s']:.1f} requests/s", "-", "-"])
    return found


def speeds(lines: list[dict]) -> list[list[str]]:
    """A row for each measured speed, in the order of the calls."""
    found = {}
    for line in lines:
        for figures in line["figures"]:
            if figures["part"] == "together":
                found[line["part"], key(figures)] = (line["part"], figures)
    return [[precision, f"{told['sequences']}:{told['adapters']}", f"{told['tokens_per_s']:,.0f}",
             f"{min(told['runs']):,.0f} to {max(told['runs']):,.0f}", *(ms(told[what], which) for what in ("to_first_token", "between_tokens")
                                                                        for which in ("p50", "p99"))]
            for precision, told in found.values()]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [head, ["---"] * len(head), *rows])


def text(lines: list[dict], precision: str) -> str:
    call = Call(lines, precision)
    about = next((line for line in lines if line["call"] == call.call and line["part"] == precision), None)
    if not about:
        return "Not measured yet.\n"
    where = f"{about['card']}, driver {about['driver']}, CUDA {about['cuda']}" if "card" in about else about["device"]
    failed = [f"* {line['name']}: it {line['why']}\n" for line in lines if line["call"] == call.call and line["why"]]
    ours = [line for line in lines if line["part"] != "peer" and line["call"] == call.call]
    return (f"{where}, base in {precision}.\n\n" + table(["what", "ours", "beside it", "ratio", "bar", "goal"], rows(lines, precision))
            + "\nSpeeds of this call, by the precision of the base:\n\n"
            + table(["base", "sequences : adapters", "tokens/s", "of three runs", "first token, p50", "p99", "between tokens, p50", "p99"],
                    speeds(ours))
            + ("\nNot measured:\n\n" + "".join(failed) if failed else ""))


def write(path: pathlib.Path, lines: list[dict], precision: str) -> None:
    """Puts the table between its marks; what people wrote around it stays."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has no place for the table: a line {BEGIN.strip()} and below it a line {END.strip()}")
    path.write_text(before + BEGIN + "\n" + text(lines, precision) + "\n" + END + after)
