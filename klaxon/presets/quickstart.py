"""docs/quickstarts/NAME.md out of the preset, the formats, the layouts and the metric names: nothing is written twice."""

from __future__ import annotations

from collector.sources.formats import FORMATS
from collector.sources.metrics.names import FRAMEWORKS
from collector.weights.layouts import LAYOUTS
from klaxon.presets import Preset

TIERS = {0: "tier 0 (hard facts; self-bets where top logprobs are reported)", 1: "tier 1 (the trainer's logprobs: d, KL, clip rate, drift)",
         2: "tier 2 (Klaxon scores with the trainer's weights: which fault it is)"}
SHOWN_METRICS = ("kl", "mismatch_kl", "mismatch_abs_d", "clip_rate", "entropy", "reward")


def render(preset: Preset) -> str:
    """The page."""
    kind = "" if preset.complete else " This is a start: less of it was checked against the framework's own files than of the complete ones."
    return "\n".join([
        f"# Klaxon next to {preset.title}", "",
        f"{preset.title}: {preset.about}.{kind} Made from `klaxon/presets/{preset.name}.toml` by `python -m klaxon.presets`.", "",
        "## Five commands", "", "```console", *_commands(preset), "```", "",
        "`klaxon status` says at once what is being compared and how many seconds are left; the first verdict comes when the first batch",
        "closes (`[daemon] batch_seconds`, 120 by default).", "",
        *_part("Works beside a running job, no engine restart", preset.page.mid_run), *_part("Needs a restart", preset.page.restart),
        *_part("Set on the engine", preset.page.engine), *_part("In the trainer", preset.page.trainer),
        "## Where things come from", "", *_sources(preset), "", *_part("What stays unknown", preset.page.unknown),
        "Something missing? `klaxon check` names the part and the next command; `klaxon init --list` shows the other presets; every key:",
        "`python -m klaxon.config`.", ""])


def _commands(preset: Preset) -> list[str]:
    rollouts = f" --rollouts '{preset.rollouts.path}'" if preset.rollouts.path else ""
    sampling = "" if preset.says_sampling else " --temperature 1.0"
    extra = sorted({"scorer" if FORMATS[name].needs == "torch" else "sources" for name in preset.rollouts.formats[:1] if FORMATS[name].needs})
    install = f"pip install 'klaxon-rl[{','.join(extra)}]'" if extra else "pip install klaxon-rl"
    return [install, f"klaxon init --framework {preset.name} --engine http://127.0.0.1:8000{rollouts}{sampling}", "klaxon check", "klaxon run", "klaxon status"]


def _part(heading: str, items: list[str]) -> list[str]:
    return [f"## {heading}", "", *(f"- {item}" for item in items), ""]


def _sources(preset: Preset) -> list[str]:
    lines = ["| what | where | turned on by |", "|---|---|---|"]
    for name in preset.rollouts.formats:
        one = FORMATS[name]
        has = "both sides" if "trainer logprobs" in one.knows else "engine's side" if "engine logprobs" in one.knows else "text only: nothing to compare"
        lines.append(f"| rollouts, `{name}` ({has}) | {one.where} | {one.turn_on} |")
    if preset.rollouts.by == "tap":
        lines.append("| rollouts | the tap in the engine ([tap.md](../tap.md)) or `klaxon proxy` ([proxy.md](../proxy.md)) | `pip install klaxon-tap`, `KLAXON_URL` |")
    side = {"push": "`klaxon_tap.push_logprobs`, one call a rollout", "rollouts": "in the rollout files", "none": "not written: push them, or let Klaxon score (tier 2)"}
    lines.append(f"| the trainer's logprobs | {side[preset.trainer_logprobs]} | |")
    where = f"`{preset.weights.dir}`" if preset.weights.dir else "announced ([weights.md](../weights.md))"
    lines.append(f"| weights, layout `{preset.weights.layout}`: {LAYOUTS[preset.weights.layout].note} | {where} | {preset.weights.how} |")
    if names := FRAMEWORKS.get(preset.metrics):
        shown = ", ".join(f"{standard} = `{names.names[standard][0]}`" for standard in SHOWN_METRICS if standard in names.names)
        lines.append(f"| the trainer's metrics | JSONL, W&B folder or TensorBoard ([trainer-metrics.md](../trainer-metrics.md)) | {shown} |")
    for section, keys in preset.config.items():
        for key, value in keys.items():
            lines.append(f"| `[{section}] {key} = {value}` | written by `klaxon init` | {preset.why.get(f'{section}.{key}', '')} |")
    tier = preset.tier_of_files
    return [*lines, "", f"With the files alone: {TIERS[tier]}. With weights and a scorer: {TIERS[2]}." if tier is not None
            else f"With the tap: {TIERS[0]}. With pushed logprobs: {TIERS[1]}. With weights and a scorer: {TIERS[2]}."]


def index(presets: list[Preset]) -> str:
    """docs/quickstarts/README.md: the table of them."""
    rows = [f"| [{one.title}]({one.name}.md) | {'complete' if one.complete else 'a start'} | {one.about} | {_first_tier(one)} |" for one in presets]
    return "\n".join([
        "# Quickstarts, a page a framework", "",
        "`klaxon init --framework NAME` writes the config these pages speak of; `klaxon check` says what is still missing. Made by `python -m klaxon.presets`.", "",
        "| framework | preset | what | tier without a GPU or weights |", "|---|---|---|---|", *rows, "",
        "Another framework: `klaxon init --framework other`, the tap in vLLM ([tap.md](../tap.md)), the proxy ([proxy.md](../proxy.md)) or rollouts in",
        "Klaxon's own JSONL ([sources.md](../sources.md)).", ""])


def _first_tier(preset: Preset) -> str:
    if preset.tier_of_files is not None:
        return f"{preset.tier_of_files} from files"
    return "0 with the tap, 1 with pushed logprobs"
